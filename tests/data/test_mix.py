"""Mixup and cutmix: labels weigh what the pixels say, teachers see the same mix, resuming changes nothing."""

import io
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from packvit.data import (
    ClassTarget,
    DataConfig,
    DataPlan,
    LoadedBatch,
    MixConfig,
    TrainLoader,
    write_shards,
)
from packvit.data.make.write import Sample
from packvit.data.samples.cut import cut_views
from packvit.data.samples.mix import draw_mix, mix_pixels, mix_samples, own_share
from packvit.data.samples.sample import Decoded, Mix
from packvit.data.samples.targets import MixedClass
from packvit.packing import (
    DropConfig,
    Mixed,
    PackedBatch,
    PackedImage,
    PackingConfig,
    ResolutionConfig,
    View,
    ViewsConfig,
)
from packvit.train.config import Config
from packvit.train.tasks.config import DistillConfig

SIDES = st.integers(1, 5)
VIEWS = ViewsConfig(
    (4, 8), resolution=ResolutionConfig(16, 40, "uniform"), drop=DropConfig("beta", 0.3, 0.8), flip=0.5
)
PACKING = PackingConfig(seq_len=128, sequences=2, lookahead=8, balance=1)
BOTH = MixConfig(mixup=0.4, cutmix=1.0)
LABEL = {"label": ClassTarget()}


def plain(value: int, rows: int, cols: int, p: int = 4, kept: int = 0, seed: int = 0) -> Decoded:
    """A sample of one grey, in one view."""
    view = View((rows, cols), (p, p), kept or rows * cols, (0, 0, rows * p, cols * p))
    pixels = np.full((rows * p, cols * p, 3), value, np.uint8)
    return Decoded(f"k{value}", (rows * p, cols * p), seed, [view], [pixels], [{"label": value}])


def cut_mixed(samples: list[Decoded], config: MixConfig) -> list[list[PackedImage]]:
    """Each sample of a batch mixed and cut as each of its views shows it."""
    return [cut_views(sample, LABEL) for sample in mix_samples(samples, config)]


def label_of(image: PackedImage) -> MixedClass:
    label = image.targets["label"]
    assert isinstance(label, MixedClass)
    return label


def labels_of(batch: PackedBatch | None) -> Mixed:
    assert batch is not None
    labels = batch.targets["label"]
    assert isinstance(labels, Mixed)
    return labels


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """40 images of one grey each, 6 * label, in several sizes."""
    out = tmp_path_factory.mktemp("mix")
    rng = np.random.default_rng(0)
    grey = [np.full((*rng.integers(20, 50, 2), 3), 6 * i, np.uint8) for i in range(40)]
    write_shards((Sample(f"s{i:02d}", png(image), "png", i) for i, image in enumerate(grey)), out, 10)
    return out


def make(shards: Path, mix: MixConfig, state: dict | None = None, **changes) -> TrainLoader:
    data = DataConfig((str(shards),), workers=0, streams=2, shuffle_shards=2, mix=mix)
    targets = {"label": data.class_target(40)}
    loader = TrainLoader(DataPlan(replace(data, **changes), VIEWS, PACKING, 3, targets, ((4, 32),)))
    if state is not None:
        loader.load_state_dict(json.loads(json.dumps(state)))
    return loader


def test_all_images_of_a_batch_may_share_one_mix():
    samples = [plain(20 * i, 3, 3, seed=i) for i in range(6)]
    mixes = [sample.mix for sample in mix_samples(samples, MixConfig(mixup=1.0, per="batch"))]
    assert [mix.partner for mix in mixes if mix] == [5, 0, 1, 2, 3, 4]
    assert len({mix.share for mix in mixes if mix}) == 1
    cuts = [sample.mix for sample in mix_samples(samples, MixConfig(cutmix=1.0, per="batch"))]
    assert len({mix.box for mix in cuts if mix}) == 1


def take(loader: TrainLoader, number: int) -> list[LoadedBatch]:
    batches = iter(loader)
    return [next(batches) for _ in range(number)]


def patches_of(batch: PackedBatch, index: int) -> torch.Tensor:
    """uint8 [n, p*p*3] of an image."""
    p = int(batch.patch_sizes[index])
    return batch.patches[p, p][batch.image_index[batch.slots[p, p]] == index]


@given(SIDES, SIDES, SIDES, SIDES, st.floats(0, 1), st.integers(0, 99))
def test_mixup_is_the_rounded_blend_with_the_resized_partner(rows, cols, other_rows, other_cols, share, seed):
    rng = np.random.default_rng(seed)
    own, partner = (
        rng.integers(0, 256, (4 * r, 3 * c, 3), np.uint8) for r, c in ((rows, cols), (other_rows, other_cols))
    )
    mixed = mix_pixels(own, partner, Mix(1, share))
    resized = np.asarray(Image.fromarray(partner).resize((3 * cols, 4 * rows), Image.Resampling.BICUBIC))
    exact = share * own.astype(float) + (1 - share) * resized.astype(float)
    assert mixed.dtype == np.uint8
    assert np.abs(mixed - exact).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(mix_pixels(own, partner, Mix(1, 1.0)), own)


@given(SIDES, SIDES, st.integers(1, 25), st.integers(0, 2**64))
def test_cutmix_labels_weigh_the_kept_pixels(rows, cols, kept, seed):
    samples = [plain(0, rows, cols, 4, min(kept, rows * cols), seed), plain(200, 3, 2, 8, seed=seed + 1)]
    for (image,), own in zip(cut_mixed(samples, MixConfig(cutmix=1.0)), (0, 200), strict=True):
        label, patches = label_of(image), image.patches[image.cell]
        assert label.share == pytest.approx((patches == own).mean(), abs=1e-12)
        assert sorted([label.own, label.partner]) == [0, 200]
        assert set(np.unique(patches)) <= {0, 200}


def test_an_image_is_the_larger_part_of_its_mixup_and_shares_are_those_of_the_values():
    samples = [plain(0, 2, 3, kept=4), plain(250, 3, 2, p=8, seed=1), plain(100, 1, 1, seed=2)]
    for index, (image,) in enumerate(cut_mixed(samples, MixConfig(mixup=1.0))):
        label = label_of(image)
        assert 0.5 <= label.share <= 1
        assert label.partner != label.own == samples[index].targets[0]["label"]
        own = samples[index].pixels[0].mean()
        mean = label.share * own + (1 - label.share) * label.partner
        assert abs(image.patches[image.cell].mean() - mean) <= 0.5


def test_shares_are_drawn_as_configured():
    draws = [draw_mix(Random(i), 1, 3, replace(BOTH, probability=0.6, switch=0.3)) for i in range(4000)]
    mixed = [mix for mix in draws if mix.partner != 1]
    assert len(mixed) / 4000 == pytest.approx(0.6, abs=0.04)
    assert {mix.partner for mix in mixed} == {0, 2}
    areas = [(b - t) * (r - left) for t, left, b, r in (mix.box for mix in mixed) if b > t]
    assert len(areas) / len(mixed) == pytest.approx(0.3, abs=0.04)
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)  # Beta(1, 1)
    assert all(min(mix.box) >= 0 and max(mix.box) <= 1 + 1e-12 for mix in mixed)


def test_an_image_without_others_stays_as_it_is():
    ((image,),) = cut_mixed([plain(7, 2, 2)], BOTH)
    assert label_of(image) == MixedClass(own=7, partner=7, share=1.0)
    assert (image.patches[image.cell] == 7).all()


def test_batches_of_greys_hold_what_their_labels_say_and_teachers_see_the_same(shards):
    cut = 0
    for loaded in take(make(shards, BOTH), 12):
        batch, teacher = loaded.batch, loaded.teachers[0]
        assert batch is not None
        labels = labels_of(batch)
        assert labels.own is batch.labels
        assert labels.share.dtype == torch.float32
        for i, (a, b, weight) in enumerate(zip(*(part.tolist() for part in labels), strict=True)):
            assert patches_of(batch, i).double().mean() == pytest.approx(
                6 * (weight * a + (1 - weight) * b), abs=0.51
            )
            values, seen = (patches_of(x, i).unique().tolist() for x in (batch, teacher))
            # One grey is mixup, or a cutmix that drops or rounds away one of the two.
            if len(values) == 1 and len(seen) == 1:
                assert values == seen
            else:
                assert set(values) | set(seen) <= {6 * a, 6 * b}
                cut += 1
        assert torch.equal(labels_of(teacher).partner, labels.partner)
    assert cut > 20


def test_a_teacher_sees_the_same_rectangle():
    view = View((4, 6), (8, 8), 24, (0, 0, 32, 48))
    seen = View((2, 3), (16, 16), 6, (0, 0, 32, 48))
    own, partner = np.zeros((32, 48, 3), np.uint8), np.full((32, 48, 3), 9, np.uint8)
    size = (32, 48)
    samples = [
        Decoded("k", size, i, [view, seen], [x, x], 2 * [{"label": i}]) for i, x in enumerate((own, partner))
    ]
    for student, teacher in cut_mixed(samples, MixConfig(cutmix=1.0)):
        # Views of one size have the very same pixels, however they are cut.
        assert (student.patches[8, 8] == 9).sum() == (teacher.patches[16, 16] == 9).sum()
        assert label_of(student).share == label_of(teacher).share


@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_batches_resume_bit_for_bit(shards, workers):
    whole = take(make(shards, BOTH), 10)
    first = make(shards, BOTH, workers=workers)
    begun = take(first, 4)
    later = take(make(shards, BOTH, first.state_dict()), 6)
    for one, two in zip(whole, begun + later, strict=True):
        for x, y in zip((one.batch, *one.teachers), (two.batch, *two.teachers), strict=True):
            assert x is not None
            assert y is not None
            assert_same(x, y)


def assert_same(one: PackedBatch, two: PackedBatch) -> None:
    assert one.patches.keys() == two.patches.keys()
    assert all(torch.equal(one.patches[p], two.patches[p]) for p in one.patches)
    for name in ("image_index", "coords"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    for part, same in zip(labels_of(one), labels_of(two), strict=True):
        assert torch.equal(part, same)


def test_mixing_changes_neither_the_views_nor_the_order(shards):
    for off in (MixConfig(), replace(BOTH, probability=0.0)):
        for one, two in zip(take(make(shards, off), 4), take(make(shards, BOTH), 4), strict=True):
            assert one.batch is not None
            assert two.batch is not None
            assert isinstance(one.batch.targets["label"], torch.Tensor)
            assert one.batch.keys == two.batch.keys
            assert torch.equal(one.batch.coords, two.batch.coords)
            assert one.state == two.state


def test_impossible_mixes_name_their_field():
    wrong: dict[str, Any] = {"mixup": -1, "cutmix": float("inf"), "probability": 2, "switch": -0.1}
    for field, value in wrong.items():
        with pytest.raises(ValueError, match=rf"data\.mix\.{field}={value}"):
            MixConfig(**{field: value})
    with pytest.raises(ValueError, match=r"data\.mix\.probability=0"):
        Config(data=DataConfig(mix=BOTH), distill=DistillConfig(logits_field="teacher.npy"))


def test_the_share_counts_only_what_is_kept():
    # The partner has the left half; both kept patches lie there, then one of them.
    (image,) = cut_views(plain(0, 1, 4), LABEL)
    mix = Mix(1, box=(0.0, 0.0, 1.0, 0.5))
    assert own_share(mix, image) == 0.5
    assert own_share(mix, replace(image, coords=image.coords[:2])) == 0.0
    assert own_share(mix, replace(image, coords=image.coords[1:3])) == 0.5
    assert own_share(mix, replace(image, coords=image.coords[2:])) == 1.0
