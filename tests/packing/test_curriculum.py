"""Views that change with the images seen: where they start, how they move, where they stay."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import CurriculumConfig, DropConfig, ResolutionConfig, ViewsConfig, draw_view, views_at

LARGE_TO_SMALL = ViewsConfig(
    patch_sizes=(8, 16, 32),
    patch_weights=(0, 0, 2),
    resolution=ResolutionConfig(64, 128, "uniform"),
    curriculum=CurriculumConfig(1000, 3000, patch_weights=(1, 0, 0), low=128, high=256),
)
LENGTHS = ViewsConfig(
    resolution=ResolutionConfig(sides=(64, 128, 256), weights=(0, 1, 0)),
    curriculum=CurriculumConfig(900, 900, resolution_weights=(1, 1, 1)),
)


def test_nothing_moves_before_the_start_nor_after_the_end():
    assert views_at(LARGE_TO_SMALL, 0) == views_at(LARGE_TO_SMALL, 1000)
    assert views_at(LARGE_TO_SMALL, 3000) == views_at(LARGE_TO_SMALL, 10**9)
    assert views_at(LARGE_TO_SMALL, 0).patch_weights == (0, 0, 1)
    assert views_at(LARGE_TO_SMALL, 0).resolution == LARGE_TO_SMALL.resolution
    last = views_at(LARGE_TO_SMALL, 3000)
    assert last.patch_weights == (1, 0, 0)
    assert (last.resolution.low, last.resolution.high) == (128, 256)


@given(st.integers(1000, 3000))
def test_weights_and_ranges_move_linearly(images):
    now = views_at(LARGE_TO_SMALL, images)
    share = (images - 1000) / 2000
    assert np.allclose(now.patch_weights, (share, 0, 1 - share), atol=1e-3)
    assert np.isclose(now.resolution.low, 64 + share * 64, atol=0.7)
    assert np.isclose(now.resolution.high, 128 + share * 128, atol=0.7)
    assert not now.moves


def test_draws_follow_the_images_seen():
    rng = Random(0)
    half = Counter(draw_view(rng, (100, 100), views_at(LARGE_TO_SMALL, 2000)).patch_size for _ in range(4000))
    assert set(half) == {8, 32}
    assert np.isclose(half[8] / 4000, 0.5, atol=0.03)


def test_a_list_of_resolutions_is_drawn_by_weight_and_changes_in_one_step():
    rng = Random(0)
    before = Counter(draw_view(rng, (100, 100), views_at(LENGTHS, 899)).height for _ in range(500))
    after = Counter(draw_view(rng, (100, 100), views_at(LENGTHS, 900)).height for _ in range(3000))
    assert before == {128: 500}
    assert set(after) == {64, 128, 256}
    assert np.allclose([after[s] / 3000 for s in (64, 128, 256)], 1 / 3, atol=0.03)
    assert (LENGTHS.resolution.low, LENGTHS.resolution.high) == (64, 256)


@given(st.integers(0, 10**9), st.sampled_from([-200.0, -1.0, 3.0, 5e4]))
def test_a_scheduled_drop_rate_is_the_sigmoid_of_the_images_seen(images, tau):
    config = ViewsConfig(drop=DropConfig("schedule", maximum=0.8, minimum=0.2, middle=5000, tau=tau))
    x = (images - 5000) / tau
    sigmoid = 1 / (1 + math.exp(-x)) if abs(x) < 700 else float(x > 0)
    rate = views_at(config, images).drop.mean
    assert np.isclose(rate, 0.2 + 0.6 * sigmoid, atol=1e-4)
    view = draw_view(Random(0), (320, 320), views_at(config, images))
    assert view.num_tokens == max(1, round(view.num_cells * (1 - rate)))


def test_a_budget_holds_while_patch_sizes_move():
    config = ViewsConfig(
        patch_sizes=(8, 16),
        resolution=ResolutionConfig(64, 256, "uniform"),
        budget=120,
        curriculum=CurriculumConfig(0, 1000, patch_weights=(3, 1)),
    )
    for images in (0, 500, 1000):
        rng = Random(images)
        now = views_at(config, images)
        tokens = [draw_view(rng, (300, 300), now).num_tokens for _ in range(4000)]
        assert np.isclose(np.mean(tokens), 120, rtol=0.03)


def test_squares_end_where_the_curriculum_does():
    config = ViewsConfig(
        resolution=ResolutionConfig(sides=(256,)),
        square=True,
        curriculum=CurriculumConfig(50, 50, native=True),
    )
    grids = {
        images: draw_view(Random(0), (200, 400), views_at(config, images)).grid for images in (0, 49, 50)
    }
    assert grids == {0: (16, 16), 49: (16, 16), 50: (11, 23)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CurriculumConfig(5, 3), "needs 0 <= start <= end, not start=5, end=3"),
        (
            lambda: ViewsConfig((8, 16), curriculum=CurriculumConfig(patch_weights=(1,))),
            r"views\.curriculum\.patch_weights needs one weight for each of views\.patch_sizes",
        ),
        (
            lambda: ViewsConfig(curriculum=CurriculumConfig(resolution_weights=(1,))),
            r"resolution_weights needs one weight for each of views\.resolution\.sides",
        ),
        (lambda: ViewsConfig(curriculum=CurriculumConfig(low=512)), "needs 1 <= low <= high, got low=512"),
        (lambda: ResolutionConfig(sides=(64,), weights=(-1,)), r"views\.resolution\.weights=\(-1,\) must be"),
        (
            lambda: ViewsConfig(curriculum=CurriculumConfig(native=True)),
            r"views\.curriculum\.native changes views that start with views\.square=True",
        ),
        (lambda: DropConfig("schedule", tau=0), r"views\.drop\.tau=0 must be"),
        (lambda: DropConfig("schedule", minimum=0.5, maximum=0.4), "schedule needs 0 <= minimum <= maximum"),
        (
            lambda: ViewsConfig(budget=20, curriculum=CurriculumConfig(10, 20, low=250)),
            "views.budget: a mean of 20 tokens is out of reach",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
