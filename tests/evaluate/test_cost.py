"""Costs: what is measured has the shape of what is evaluated."""

from contextlib import nullcontext

import torch
from hypothesis import given
from hypothesis import strategies as st

from packvit.data import EvalSet
from packvit.evaluate import Setting
from packvit.evaluate.sweep.cost import COSTS, blank_batch, fill, measure_costs, percentile, time_passes
from packvit.models import PackedViT, ViTConfig


def test_blank_images_lie_in_a_batch_as_real_ones_do(digits_set):
    images, setting = EvalSet(str(digits_set / "val")), Setting(6, 40)
    [*_, piece] = images.pieces([setting], 10_000, [range(9)])
    blank = blank_batch([setting.view(header.native_size) for header in images.headers[:9]])
    real = piece.batch
    for name in ("image_index", "coords", "extents", "grids", "cells", "cu_seqlens"):
        assert torch.equal(getattr(blank, name), getattr(real, name)), name
    assert blank.counts == real.counts
    for shape, patches in real.patches.items():
        assert blank.patches[shape].shape == patches.shape
        assert torch.equal(blank.slots[shape], real.slots[shape])


def test_a_setting_costs_something(digits_set):
    images = EvalSet(str(digits_set / "val"))
    model = PackedViT(ViTConfig(width=16, depth=1, heads=1, num_classes=3)).eval()
    settings = [Setting(8, 32), Setting(4, tokens=30)]
    costs = measure_costs(model, images, settings, 256, nullcontext())
    for setting, cost in zip(settings, costs, strict=True):
        assert tuple(cost) == COSTS
        assert cost["images_per_s"] > 0
        assert 0 < cost["latency_ms_p50"] <= cost["latency_ms_p99"]
        assert cost["memory_mb"] is None
        lengths = sorted(setting.view(header.native_size).num_tokens for header in images.headers)
        assert cost["latency_tokens"] == lengths[15]


@given(st.integers(1, 40), st.integers(1, 300))
def test_a_batch_is_filled_with_as_many_images_as_fit(side, tokens):
    views = [Setting(8, 8 * side).view((64, 64)), Setting(8, 16).view((64, 64))]
    chosen = fill(views, tokens)
    used = sum(view.num_tokens for view in chosen)
    following = views[len(chosen) % 2].num_tokens
    assert chosen[0] == views[0]
    assert used <= tokens or len(chosen) == 1
    assert used + following > tokens


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_reaches_its_share(values, share):
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_the_first_pass_is_not_timed():
    calls = []
    times = time_passes(lambda: calls.append(1), 4)
    assert (len(times), len(calls)) == (4, 5)
