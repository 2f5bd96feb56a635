"""One training step of many kinds of models on fake CUDA tensors: does it run, does it wait, what it copies.

A wrong call, dtype or device raises. So does every operation whose result's shape depends on values, because
the host would wait for it; reads of single numbers are counted as waits instead.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch._subclasses import FakeTensorMode

from dry.count import Count
from dry.fake import DEVICE, place, to_fake
from gpu.batches import make_batch
from gpu.compiling import TEN
from gpu.steps import Trainer, make_trainer, plan
from packvit.models import ViTConfig
from packvit.packing import Flat, PackedBatch
from packvit.train.config import Config
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.start import make_module

SMALL: dict[str, Any] = {"width": 384, "depth": 2, "heads": 6}


class Variant(NamedTuple):
    """A model, how it is trained, and on what.

    model: fields of ViTConfig besides SMALL.
    training: arguments of `plan`.
    patch_sizes: of the batches.
    batches: in a step.
    """

    model: Mapping[str, Any] = MappingProxyType({})
    training: Mapping[str, Any] = MappingProxyType({})
    patch_sizes: tuple[int, ...] = (16,)
    batches: int = 1


VARIANTS = {
    "default": Variant(),
    "mean pooling, no norms of queries": Variant({"pool": "mean", "qk_norm": "none"}),
    "swiglu, RMS norms, layer norms of queries": Variant(
        {"mlp": "swiglu", "norm": "rms", "qk_norm": "layer"}
    ),
    "rotary positions": Variant({"pos_embed": "rope_2d"}),
    "2D position table": Variant({"pos_embed": "grid_2d"}),
    "Fourier positions": Variant({"pos_table": "fourier"}),
    "class token and registers": Variant({"cls": True, "registers": 4, "pool": "cls"}),
    "class token and mean": Variant({"cls": True, "pool": "cls_mean"}),
    "parallel, no biases": Variant({"parallel": True, "biases": False}),
    "layer scale, dropped paths": Variant({"layer_scale": 0.1, "drop_path": 0.2}),
    "recomputed blocks": Variant({"checkpoint_every": 1}),
    "heads of 80": Variant({"width": 320, "heads": 4}),
    "heads of 24": Variant({"width": 144}),
    "ten patch sizes": Variant(patch_sizes=TEN),
    "sigmoid loss, average": Variant(training={"loss": "sigmoid", "ema": 0.999}),
    "Muon": Variant(training={"kind": "muon"}),
    "two batches a step": Variant(batches=2),
}


def fake_trainer(config: Config, mode: FakeTensorMode) -> Trainer:
    """A trainer whose model, gradients and optimizer state are fake CUDA tensors."""
    with mode:
        module = make_module(config, Classification(config))
    place(module, mode)
    with mode:
        trainer = make_trainer(config, DEVICE, module)
    trainer.choose = False  # there is nothing to measure
    return trainer


def host_batches(variant: Variant, mode: FakeTensorMode) -> list[PackedBatch]:
    """The batches of a step, as fake tensors in host memory."""
    batches = [make_batch(4, 512, variant.patch_sizes, seed, noise=False) for seed in range(variant.batches)]
    return [to_fake(batch, mode, batch.image_index.device) for batch in batches]


def try_variant(variant: Variant, mode: FakeTensorMode) -> dict[str, Any]:
    """Waits and copies of a step that is not the first one."""
    config = plan(ViTConfig(**{**SMALL, **variant.model}), **variant.training)
    trainer, batches = fake_trainer(config, mode), host_batches(variant, mode)
    # The first step makes what later ones keep: matrices of patch sizes, the optimizer's state.
    with mode:
        flat = [Flat.pack(batch) for batch in batches]  # as workers give them
    with mode, Count():
        trainer.step(*(some.to(DEVICE).unpack() for some in flat))
    with mode, Count() as count:
        trainer.step(*(some.to(DEVICE).unpack() for some in flat))
    return {
        "waits": sum(count.waits.values()),
        "where": dict(count.waits),
        "copies_to_device": count.copies["to device"],
        "bytes_to_device": count.copied["to device"],
        "copies_to_host": count.copies["to host"],
    }


def run() -> dict[str, Any]:
    """{variant: its numbers, or `error`, the first line of what it raised}."""
    mode = FakeTensorMode()
    results = {}
    for name, variant in VARIANTS.items():
        try:
            results[name] = try_variant(variant, mode)
        except Exception as error:  # whatever torch raises is what this looks for
            lines = str(error).splitlines() or [""]
            results[name] = {"error": f"{type(error).__name__}: {lines[0]}"}
    return results
