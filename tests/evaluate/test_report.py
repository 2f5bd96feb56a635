"""The picture of accuracies shows what is in the rows that it is drawn from."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packvit.common.plots import COLOURS
from packvit.evaluate import draw_accuracy


def colours_of(path: Path) -> set[tuple[int, ...]]:
    """The colours of a picture."""
    with Image.open(path) as image:
        return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def test_accuracy_has_a_line_for_every_patch_size(tmp_path):
    rows = [
        {"resolution": r, "patch_size": p, "tokens_per_image": (r / p) ** 2, "accuracy": 0.5}
        for r in (32, 64)
        for p in (4, 8, 16)
    ]
    draw_accuracy(rows, tmp_path / "sub/accuracy.png")
    assert {rgb(colour) for colour in COLOURS[:3]} <= colours_of(tmp_path / "sub/accuracy.png")


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"packvit\[plot\]"):
        draw_accuracy([], tmp_path / "accuracy.png")
