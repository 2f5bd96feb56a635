"""Curves of a run: what is read from metrics.jsonl and what is drawn of it."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from packvit.train.watch import curves
from packvit.train.watch.curves import SMOOTHED, draw_history, group_names, series, short_number, smooth


@pytest.fixture(autouse=True)
def _rendered(rendering) -> Iterator[None]:
    with rendering():
        yield


def make_line(step: int, **changes) -> dict:
    line = {
        "step": step,
        "images_seen": 100 * step,
        "loss": 1 / step,
        "loss_by_patch_size": {"8": 1 / step, "16": 2 / step},
        "loss_by_resolution": {"52-72": 1 / step, "104-144": 1.0},
        "drop_rate": 0.2,
        "drop_rate_by_resolution": {"52-72": 0.1, "104-144": 0.3},
        "lr": 0.1,
        "grad_norm": 1.0,
        "padding_fraction": 0.01,
        "images_per_s": 50.0,
        "data_wait_fraction": 0.0,
    }
    return line | changes


def test_what_is_unknown_is_left_out():
    lines = [make_line(1), make_line(2, loss=None, loss_by_patch_size={}), {"step": 3, "images_seen": 300}]
    lines += [make_line(4, loss_by_patch_size={"4": 7.0})]
    assert [values.tolist() for values in series(lines, "loss")] == [[100, 400], [1, 0.25]]
    assert [values.tolist() for values in series(lines, "loss_by_patch_size", "4", "step")] == [[4], [7]]
    assert group_names(lines, "loss_by_patch_size") == ["4", "8", "16"]


@given(st.lists(st.floats(-100, 100), max_size=200))
def test_a_smooth_curve_stays_within_its_points_and_has_as_many(values):
    y = np.array(values)
    smoothed = smooth(y)
    assert smoothed.shape == y.shape
    if len(values) < SMOOTHED:
        assert smoothed is y
    if values:
        assert y.min() - 1e-9 <= smoothed.min() <= smoothed.max() <= y.max() + 1e-9
    np.testing.assert_allclose(smooth(np.full(len(y), 3.0)), 3.0)


@pytest.mark.parametrize("lines", [1, 2, 300])
def test_pictures_are_drawn_of_short_and_long_runs(lines, tmp_path):
    history = [make_line(step) for step in range(1, lines + 1)] + [
        make_line(lines + 1, loss=None, grad_norm=None)
    ]
    draw_history(history, tmp_path / "run")
    for name in ("loss.png", "drop.png", "curves.png"):
        with Image.open(tmp_path / "run" / name) as image:
            assert image.width > 600


def test_panels_are_those_in_which_something_happens(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure))
    calm = {"padding_fraction": 0.004, "data_wait_fraction": 0.0}
    lines = [make_line(step, **calm) for step in (1, 2, 3)]
    curves.draw_curves(lines, tmp_path / "curves.png")
    lines[1] |= {"validation": {"accuracy": 0.5, "r32-p8": {"accuracy": 0.4}}, "padding_fraction": 0.2}
    curves.draw_curves(lines, tmp_path / "curves.png")
    always = ["learning rate", "gradient norm", "images/s"]
    names = [[axes.get_ylabel() for axes in figure.axes] for figure in drawn]
    assert names == [always, [*always, "padding, %", "validation:\naccuracy, %"]]
    assert drawn[1].axes[-1].lines[0].get_xydata().tolist() == [[2, 50]]
    lines[1]["validation"] = {"image_to_text_r1": 0.5}
    curves.draw_curves(lines, tmp_path / "curves.png")
    assert drawn[2].axes[-1].get_ylabel() == "validation:\nrecall@1, image to text, %"


def test_a_run_that_drops_nothing_has_no_picture_of_it(tmp_path):
    draw_history([make_line(1, drop_rate=0.0)], tmp_path)
    assert not (tmp_path / "drop.png").exists()


def test_numbers_of_images_are_short():
    assert [short_number(n) for n in (0, 950, 12300, 4e6, 1.5e9)] == ["0", "950", "12.3k", "4M", "1.5G"]
