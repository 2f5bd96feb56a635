"""Pictures show what is in the data they are drawn from."""

import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from packvit.packing import PackedBatch
from packvit.train import report
from packvit.train.report import PADDING, draw_accuracy, draw_samples


def colours_of(path) -> Counter[tuple[int, int, int]]:
    """How many pixels of a picture have each colour."""
    with Image.open(path) as image:
        return Counter(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def test_samples_show_patches_and_padding(cut_image, tmp_path):
    red = np.full((32, 16, 3), (250, 3, 3), np.uint8)
    blue = np.full((24, 24, 3), (3, 3, 250), np.uint8)
    image, dropped = cut_image(red, 8, label=4), cut_image(blue, 8, keep=np.arange(5), label=1)
    draw_samples(PackedBatch.build([[image, dropped]], 24), tmp_path / "a.png")
    counts = colours_of(tmp_path / "a.png")
    assert min(counts[250, 3, 3], counts[3, 3, 250], counts[rgb(PADDING)]) > 1000
    draw_samples(PackedBatch.build([[image]], 8), tmp_path / "b.png")
    assert colours_of(tmp_path / "b.png")[rgb(PADDING)] < 100  # smoothed edges of text


def test_a_picture_of_few_images_is_as_wide_as_its_title(cut_image, tmp_path):
    draw_samples(PackedBatch.build([[cut_image(np.zeros((8, 8, 3), np.uint8), 8)]], 4), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("L"))
    dark = np.flatnonzero((pixels[: pixels.shape[0] // 8] < 128).any(0))  # columns of the title
    assert dark[0] > 10
    assert dark[-1] < pixels.shape[1] - 10


def test_accuracy_has_a_line_for_every_patch_size(tmp_path):
    rows = [
        {"resolution": r, "patch_size": p, "tokens_per_image": (r / p) ** 2, "accuracy": 0.5}
        for r in (32, 64)
        for p in (4, 8, 16)
    ]
    draw_accuracy(rows, tmp_path / "sub/accuracy.png")
    assert {rgb(colour) for colour in report.COLOURS[:3]} <= set(colours_of(tmp_path / "sub/accuracy.png"))


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"packvit\[plot\]"):
        draw_accuracy([], tmp_path / "accuracy.png")
