"""The demo set: drawn from disjoint scans, the same for the same seed, and readable as any other set."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packvit.data import Shard, check_shards, expand_shards, write_digits
from packvit.data.make import digits as digits_module
from packvit.data.make.digits import (
    CLUTTER,
    LARGEST,
    SMALLEST,
    STEEPEST,
    draw_canvas,
    draw_size,
    load_scans,
    split_scans,
)
from packvit.packing import derive_seed

pytest.importorskip("sklearn")


def read_all(folder: Path) -> dict[str, tuple[bytes, int | None]]:
    shards = [Shard.open(path) for path in expand_shards(str(folder))]
    return {shard.key(i): (shard.image(i), shard.label(i)) for shard in shards for i in range(len(shard))}


def test_scans_are_whole_and_of_full_contrast():
    scans, labels = load_scans()
    assert scans.shape == (1797, 8, 8)
    assert scans.dtype == np.uint8
    assert (scans.min(), scans.max()) == (0, 255)
    assert sorted(set(labels.tolist())) == list(range(10))


@pytest.mark.parametrize("seed", [0, 1])
def test_train_and_test_scans_are_disjoint_and_balanced(seed):
    scans, labels = load_scans()
    train, test = split_scans(labels, seed)
    assert sorted([*train, *test]) == list(range(1797))
    for digit in range(10):
        count = (labels == digit).sum()
        assert (labels[test] == digit).sum() == round(count * digits_module.TEST_SHARE)
    # No scan is there twice under two indices either.
    assert not {scan.tobytes() for scan in scans[train]} & {scan.tobytes() for scan in scans[test]}


def test_another_seed_splits_otherwise():
    _, labels = load_scans()
    assert set(split_scans(labels, 0)[1]) != set(split_scans(labels, 1)[1])


def test_sizes_cover_their_range():
    rng = np.random.default_rng(0)
    sizes = np.array([draw_size(rng) for _ in range(2000)])
    assert SMALLEST <= sizes.min() < SMALLEST + 3
    assert LARGEST - 3 < sizes.max() <= LARGEST
    aspects = sizes[:, 0] / sizes[:, 1]
    # Rounding to whole pixels may push a ratio over its bound by a little.
    assert 1 / STEEPEST - 0.01 < aspects.min() < 0.36
    assert 2.8 < aspects.max() < STEEPEST + 0.1
    assert abs(np.log(aspects).mean()) < 0.05


@pytest.mark.parametrize("clutter", [0, 0.5, 1])
def test_a_canvas_depends_on_its_generator_alone(clutter):
    scans, labels = load_scans()
    one, two, other = (draw_canvas(np.random.default_rng(seed), scans, labels, clutter) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]
    assert one[0].shape != other[0].shape or (one[0] != other[0]).any()
    assert one[0].dtype == np.uint8
    assert one[0].shape[2] == 3


def test_a_canvas_shows_its_digit():
    scans, labels = load_scans()
    blank = np.zeros_like(scans)
    for seed in range(20):
        with_digit, label = draw_canvas(np.random.default_rng(seed), scans, labels, 0)
        without, _ = draw_canvas(np.random.default_rng(seed), blank, labels, 0)
        assert 0 <= label <= 9
        lighter = with_digit.astype(int).max(2) - without.astype(int).max(2)
        assert lighter.max() > 80
        assert 0.01 < (lighter > 60).mean() < 0.9


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("set")
    write_digits(out, 130, 50, seed=5, shard_size=50)
    return out


def test_the_set_is_readable_and_its_labels_are_right(small_set):
    report = check_shards([str(small_set / "train"), str(small_set / "val")])
    assert (report.shards, report.samples, report.problems) == (4, 180, {})
    scans, labels = load_scans()
    train, test = split_scans(labels, 5)
    for split, count, part in (("train", 130, train), ("val", 50, test)):
        assert json.loads((small_set / split / "classes.json").read_text()) == [str(i) for i in range(10)]
        found = read_all(small_set / split)
        assert len(found) == count
        for index, (key, (data, label)) in enumerate(found.items()):
            rng = np.random.default_rng(derive_seed(5, split, index))
            canvas, digit = draw_canvas(rng, scans[part], labels[part], CLUTTER)
            assert label == digit, key
            stored = np.asarray(Image.open(io.BytesIO(data)))
            assert stored.shape == canvas.shape
            assert np.abs(stored.astype(int) - canvas).mean() < 8


def test_all_digits_occur_about_equally_often(small_set):
    counts = Counter(label for _, label in read_all(small_set / "train").values())
    assert set(counts) == set(range(10))
    assert max(counts.values()) < 30  # 13 expected; six standard deviations above


def test_the_seed_decides_every_byte_and_the_count_does_not(small_set, tmp_path):
    write_digits(tmp_path / "same", 130, 50, seed=5, shard_size=50)
    for path in expand_shards(str(small_set / "*" / "*.tar")):
        assert Path(path).read_bytes() == (tmp_path / "same" / Path(path).relative_to(small_set)).read_bytes()
    write_digits(tmp_path / "fewer", 3, 2, seed=5)
    write_digits(tmp_path / "other", 3, 2, seed=6)
    whole, fewer, other = (
        read_all(path / "train") for path in (small_set, tmp_path / "fewer", tmp_path / "other")
    )
    assert fewer.items() <= whole.items()
    assert all(fewer[key] != other[key] for key in fewer)


def test_progress_counts_every_canvas(tmp_path):
    steps = []
    write_digits(tmp_path, 3, 2, clutter=0, progress=lambda *step: steps.append(step))
    assert steps == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clutter": 1.5}, "clutter=1.5 must be in"),
        ({"train_images": 0}, "train_images=0 and test_images=1 must be at least 1"),
        ({"test_images": -1}, "test_images=-1 must be at least 1"),
    ],
)
def test_impossible_sets_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_digits(tmp_path / "set", **({"train_images": 1, "test_images": 1} | options))
    assert not (tmp_path / "set").exists()


def test_a_set_is_not_written_over(small_set):
    with pytest.raises(ValueError, match="already holds shards"):
        write_digits(small_set, 1, 1)
