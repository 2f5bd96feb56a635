"""Whether a compiled step compiles again in ten batches of other sizes, lengths and sets of patch sizes."""

from collections.abc import Iterator
from functools import partialmethod
from typing import Any

from gpu.batches import make_batch
from gpu.compiling import SETS, count_graphs
from gpu.options import Options
from gpu.steps import make_trainer, model_config, plan
from packvit.models import PackedViT


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Graphs after each batch, and `error` where some came late or the compiler gave up."""
    if options.tiny:  # no C++ compiler
        compile_blocks = partialmethod(PackedViT.compile_blocks, backend="aot_eager")
        setattr(PackedViT, "compile_blocks", compile_blocks)  # noqa: B010
    seq_len = 64 if options.tiny else 1024
    trainer = make_trainer(plan(model_config("S", options.tiny), compiled=True), options.device)
    batches = [make_batch(4 + i % 3, seq_len, sizes, i).to(options.device) for i, sizes in enumerate(SETS)]
    counts = count_graphs(trainer.step, batches)
    if counts["recompiles"] or counts["limit_reached"]:
        counts["error"] = f"graphs after each of ten batches: {counts['graphs']}"
    yield "ten batches", counts
