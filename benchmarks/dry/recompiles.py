"""Whether forward and backward passes compile again when batches differ, on fake CUDA tensors."""

from functools import partialmethod
from typing import Any

from torch._subclasses import FakeTensorMode

from dry.fake import to_fake
from dry.variants import SMALL, fake_trainer
from gpu.batches import make_batch
from gpu.compiling import SETS, count_graphs
from gpu.steps import plan
from packvit.models import PackedViT, ViTConfig

MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "class token, rotary": {"cls": True, "pos_embed": "rope_2d"},
}


def run() -> dict[str, Any]:
    """{model: graphs after each of ten batches of other sizes, lengths and patch sizes}."""
    # Graphs without kernels: what is compiled again does not depend on what it is compiled to.
    setattr(PackedViT, "compile_blocks", partialmethod(PackedViT.compile_blocks, backend="aot_eager"))  # noqa: B010
    results, mode = {}, FakeTensorMode()
    for name, fields in MODELS.items():
        trainer = fake_trainer(plan(ViTConfig(**{**SMALL, **fields}), compiled=True), mode)
        made = [make_batch(4 + i % 3, 256, sizes, i, noise=False) for i, sizes in enumerate(SETS)]
        batches = [to_fake(batch, mode) for batch in made]
        with mode:
            results[name] = count_graphs(trainer.gradients, batches)
    return results
