"""Every choice by name computes something of its own: one that is named and not written is not another."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import combinations
from random import Random
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from packvit.data import DataConfig, DataPlan, pack_images
from packvit.data.samples.cut import kept_positions
from packvit.data.samples.mix import MixConfig, draw_mix
from packvit.data.streams.stream import Stream
from packvit.models import PackedText, PackedViT, TextConfig, TextTower, ViTConfig
from packvit.packing import (
    DropConfig,
    PackedBatch,
    PackingConfig,
    ResolutionConfig,
    View,
    ViewsConfig,
    draw_view,
    views_at,
)
from packvit.packing.packers.config import Algorithm
from packvit.train.config import Config
from packvit.train.step.optim import OptimConfig, make_optimizers
from packvit.train.step.schedule import lr_factor
from packvit.train.tasks.classification import classification_loss
from packvit.train.tasks.contrastive_loss import contrastive_loss
from packvit.train.tasks.distillation import distance
from packvit.train.watch.trackers import KINDS

Compute = Callable[[Any], Any]


def choices(config: type = Config, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """(field, its values) of every field of a run that is one of several names."""
    hints = get_type_hints(config)
    for f in fields(config):
        hint = hints[f.name]
        if is_dataclass(hint):
            yield from choices(hint, f"{prefix}{f.name}.")  # pyright: ignore[reportArgumentType]
        elif get_origin(hint) is tuple:
            hint = get_args(hint)[0]
        if get_origin(hint) is Literal:
            yield prefix + f.name, get_args(hint)


# ---- Models ---------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, shape, np.uint8) for shape in ((12, 20, 3), (24, 12, 3))]
BATCH = pack_images(IMAGES, patch_size=[4, 6])  # neither is the side of the stored patch embedding
MODEL = ViTConfig(width=16, depth=1, heads=2, num_classes=0, patch_buffer=8, pos_grid=(4, 4), cls=True)
TEXTS = PackedText.build([[1, 2, 3], [4, 5]])


def model(field: str, **others: Any) -> Compute:
    """The features of images by a model with a value in a field."""

    def compute(value: str) -> torch.Tensor:
        torch.manual_seed(0)
        return PackedViT(replace(MODEL, **others, **{field: value})).eval().features(BATCH)

    return compute


def text(value: Any) -> torch.Tensor:
    torch.manual_seed(0)
    config = TextConfig(width=16, depth=1, heads=2, vocab_size=9, max_tokens=4, pool=value)
    return TextTower(config).eval()(TEXTS)


# ---- Views and packing ----------------------------------------------------------------------------------


def views(config: ViewsConfig) -> list[View]:
    """Of some images of two shapes, after as many images as make a schedule move."""
    rng, config = Random(0), views_at(config, 500)
    return [draw_view(rng, (30 + number % 50, 70), config) for number in range(60)]


def drawn(field: str, **others: Any) -> Compute:
    return lambda value: views(ViewsConfig(resolution=ResolutionConfig(20, 60, **others, **{field: value})))


def drop(value: Any) -> list[View]:
    config = DropConfig(value, mean=0.3, maximum=0.7, minimum=0.2, middle=400, tau=300)
    return views(ViewsConfig(patch_sizes=(4,), resolution=ResolutionConfig(20, 60), drop=config))


def pattern(value: Any) -> np.ndarray:
    patches = RNG.integers(0, 256, (36, 48), np.uint8)
    return kept_positions(3, View((6, 6), (4, 4), 18, (0, 0, 24, 24)), value, patches)


def pack(value: Algorithm) -> list:
    rng = Random(0)
    packer = PackingConfig(seq_len=50, algorithm=value, lookahead=8).new_packer()
    found = [packer.add(number, rng.randint(5, 40)) for number in range(80)]
    return [*found, packer.flush()]


def mix(value: Any) -> list:
    config = MixConfig(mixup=1.0, per=value)
    return [draw_mix(Random(number), number, 8, config) for number in range(8)]


# ---- Training -------------------------------------------------------------------------------------------

A, B = torch.arange(12.0).view(3, 4).sin(), torch.arange(12.0).view(3, 4).cos()
LABELS = torch.tensor([0, 2, 1])


def optimizer(value: Any) -> list[str]:
    made = make_optimizers(PackedViT(MODEL), OptimConfig(kind=value))
    return [type(each).__name__ for each in made]


def schedule(value: Any) -> list[float]:
    config = OptimConfig(schedule=value, warmup=5, timescale=20)
    return [lr_factor(step, step + 1, 100, config) for step in range(100)]


def contrast(value: Any) -> Any:
    return contrastive_loss(F.normalize(A), F.normalize(B), 2.0, -1.0, value) if value else "labels"


COMPUTED: dict[str, Compute] = {
    "model.mlp": model("mlp"),
    "model.qk_norm": model("qk_norm"),
    "model.norm": model("norm"),
    "model.pool": model("pool"),
    "model.last_norm": model("last_norm"),
    "model.pos_embed": model("pos_embed"),
    "model.pos_table": model("pos_table"),
    "model.pos_coords": model("pos_coords"),
    "model.pos_combine": model("pos_combine"),
    "model.pos_resize": model("pos_resize", pos_embed="grid_2d"),
    "model.rope_coords": model("rope_coords"),
    "model.patch_operator": model("patch_operator"),
    "text.pool": text,
    "views.resolution.distribution": drawn("distribution"),
    "views.resolution.measure": drawn("measure"),
    "views.rounding": lambda value: views(ViewsConfig(rounding=value)),
    "views.drop.kind": drop,
    "views.drop.pattern": pattern,
    "packing.algorithm": pack,
    "data.mix.per": mix,
    "optim.kind": optimizer,
    "optim.schedule": schedule,
    "train.loss": lambda value: classification_loss(A, LABELS, value),
    "distill.measure": lambda value: distance(A, B, value),
    "consistency.measure": lambda value: distance(A, B, value),
    "contrastive.loss": contrast,
    "train.trackers": lambda value: KINDS[value].__name__,
}
# How the same is computed; the tests of the engine, of precision and of attention go through these.
ELSEWHERE = {
    "device",
    "train.precision",
    "train.parallel",
    "train.compile",
    "train.attention",
    "train.residual",
}


@pytest.fixture(scope="module")
def streamed(digits_set) -> dict[str, Compute]:
    """Choices that decide what a data stream gives."""

    def batch(views: ViewsConfig, packing: PackingConfig, **data: Any) -> PackedBatch:
        config = DataConfig((str(digits_set / "train"),), workers=0, streams=1, **data)
        return Stream(DataPlan(config, views, packing), 0).next_batch().batch

    def first(views: ViewsConfig, packing: PackingConfig) -> Any:
        try:
            return batch(views, packing).image_index.tolist()
        except ValueError as error:
            return str(error)

    small = ViewsConfig(patch_sizes=(4, 8), resolution=ResolutionConfig(30, 60))
    wide = PackingConfig(seq_len=256, sequences=2, lookahead=8, balance=1)
    return {
        "views.patch_size_per": lambda value: first(replace(small, patch_size_per=value), wide),
        "data.resize": lambda value: batch(small, wide, resize=value).patches[4, 4],
        "packing.oversize": lambda value: first(small, replace(wide, seq_len=60, oversize=value)),
    }


@pytest.mark.parametrize(("name", "values"), [pair for pair in choices() if pair[0] not in ELSEWHERE])
def test_every_name_of_a_choice_computes_something_of_its_own(name, values, streamed):
    """What is read from `Literal` is run: a name without code of its own raises, or repeats another's."""
    own = name if name in COMPUTED or name in streamed else name.replace("text.", "model.")
    compute = (COMPUTED | streamed).get(own)
    assert compute is not None, f"{name}: say here what its values compute"
    found = [compute(value) for value in values]
    for one, two in combinations(range(len(values)), 2):
        assert not same(found[one], found[two]), f"{name}: {values[one]} and {values[two]} are the same"


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    return bool(np.array_equal(one, two)) if isinstance(one, np.ndarray) else one == two


def test_a_name_that_no_code_knows_is_not_taken_for_another(monkeypatch):
    """The fault that the test above is for: a value added to a `Literal` alone."""
    monkeypatch.setattr("packvit.models.position.embedding.check_types", lambda config: None)
    monkeypatch.setattr("packvit.models.encoder.block.check_types", lambda config: None)
    for name, compute in COMPUTED.items():
        if name.startswith("model.") and name != "model.patch_operator":
            with pytest.raises(AssertionError, match="unreachable"):
                compute("another")
    for compute in (COMPUTED["optim.schedule"], COMPUTED["views.rounding"], COMPUTED["distill.measure"]):
        with pytest.raises(AssertionError, match="unreachable"):
            compute("another")
