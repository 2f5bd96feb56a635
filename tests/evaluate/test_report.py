"""What is shown of an evaluation is what evaluators said, whatever they call it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packvit.common.display import Display
from packvit.common.plots import COLOURS
from packvit.evaluate import draw_results, report
from packvit.evaluate.report import show_results


def colours_of(path: Path) -> set[tuple[int, ...]]:
    """The colours of a picture."""
    with Image.open(path) as image:
        return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def test_accuracy_has_a_line_for_every_patch_size(tmp_path, rendering):
    rows = [
        {"resolution": r, "patch_size": p, "tokens_per_image": (r / p) ** 2, "accuracy": 0.5}
        for r in (32, 64)
        for p in (4, 8, 16)
    ]
    with rendering():
        draw_results(rows, tmp_path / "sub/accuracy.png")
    assert {rgb(colour) for colour in COLOURS[:3]} <= colours_of(tmp_path / "sub/accuracy.png")


def test_what_no_cheaper_setting_equals_is_labelled_and_costs_have_an_axis(tmp_path, monkeypatch):
    """One is worse than a cheaper one, and one so near to the best that their labels would meet."""
    drawn = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: drawn.append(figure))
    rows = [
        {"resolution": r, "patch_size": 8, "tokens_per_image": t, "gflops_per_image": t / 100, "accuracy": a}
        for r, t, a in ((16, 4.0, 0.5), (32, 16.0, 0.4), (60, 56.0, 0.89), (64, 64.0, 0.9))
    ]
    draw_results(rows, tmp_path / "accuracy.png")
    below, above = drawn[0].axes
    assert sorted(text.get_text() for text in below.texts) == ["R16 p8", "R64 p8"]
    assert [label.get_text() for label in above.get_xticklabels()][::2] == ["0.04", "0.16", "0.64"]
    draw_results([row | {"model": name} for row in rows for name in "ab"], tmp_path / "accuracy.png")
    assert len(drawn[1].axes) == 1


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"packvit\[plot\]"):
        draw_results([], tmp_path / "accuracy.png")


def test_the_table_has_the_evaluators_values(capsys):
    """The first value is the one by which the best setting is found."""
    facts = {"patch_size": 8, "tokens": None, "tokens_per_image": 16.0, "gflops_per_image": 0.5, "images": 3}
    values = [
        {"recall_at_1": 0.25, "loss": 2.5},
        {"recall_at_1": 0.75, "loss": 1.125},
        {"recall_at_1": None, "loss": None},
    ]
    names = ("r32-p8", "r64-p8", "r96-p8")
    rows = [{"setting": name, **facts, **v, "lists": [1]} for name, v in zip(names, values, strict=True)]
    show_results(rows, Display())
    shown = capsys.readouterr().out
    assert "Recall at 1 by setting" in shown
    assert "Best (*): 75.0% at r64-p8" in shown
    assert all(text in shown for text in ("recall_at_1", "loss", "25.0%", "75.0% *", "2.500", "1.125"))
    assert "accuracy" not in shown
    assert "lists" not in shown


def test_models_sets_and_limits_of_tokens_are_told_apart(capsys):
    facts = {"tokens": 16, "tokens_per_image": 16.0, "gflops_per_image": 0.5}
    rows = [
        {"model": model, "setting": setting, "set": name, **facts, "accuracy": value}
        for model, name, setting, value in (
            ("a", "main", "t16-p4", 0.5),
            ("a", "main", "t16-p8", 0.625),
            ("b", "main", "t16-p4", 0.5),
            ("b", "other", "t16-p4", 0.75),
        )
    ]
    show_results(rows, Display())
    shown = capsys.readouterr().out
    assert "Best (*): 62.5% at t16-p8 of a of main" in shown
    assert "At most 16 tokens: 62.5% at t16-p8" in shown
