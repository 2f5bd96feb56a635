"""Views and grids."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import ResolutionConfig, View, ViewsConfig, derive_seed, draw_view, full_view, same_crop
from packvit.packing.views.grid import fit_grid, largest_grid, shrink_grid
from packvit.packing.views.view import draw_inception_box

sides = st.integers(1, 4000)


@given(sides, sides, st.integers(1, 1024), st.sampled_from([4, 8, 15, 16, 32, 48]))
def test_grid_keeps_area_and_aspect_as_nearly_as_whole_patches_allow(height, width, resolution, p):
    rows, cols = fit_grid(height, width, resolution, p)
    exact_rows, exact_cols = (side * resolution / (height * width) ** 0.5 / p for side in (height, width))
    if min(exact_rows, exact_cols) < 0.999:
        assert min(rows, cols) == 1
        assert abs(max(rows, cols) - max(1, (resolution / p) ** 2)) <= 0.5
    elif min(exact_rows, exact_cols) > 1.001:
        assert abs(rows - exact_rows) <= 0.5
        assert abs(cols - exact_cols) <= 0.5


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5000))
def test_shrunk_grid_fits_and_wastes_little(rows, cols, limit):
    small_rows, small_cols = shrink_grid(rows, cols, limit)
    assert 1 <= small_rows <= rows
    assert 1 <= small_cols <= cols
    assert small_rows * small_cols <= limit
    if rows * cols <= limit:
        assert (small_rows, small_cols) == (rows, cols)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 2000))
def test_the_largest_grid_fits_and_no_higher_resolution_does(height, width, limit):
    rows, cols = largest_grid(height, width, limit)
    assert 1 <= rows * cols <= limit
    for resolution in range(1, 3 * int(limit**0.5) + 3):
        other = fit_grid(height, width, resolution, 1)
        assert other[0] * other[1] > limit or other[0] * other[1] <= rows * cols


@given(sides, sides, st.integers(16, 512), st.sampled_from([8, 16, 32]))
def test_floored_grids_lie_within_the_area(height, width, resolution, p):
    rows, cols = fit_grid(height, width, resolution, p, "floor")
    scale = resolution / (height * width) ** 0.5 / p
    if min(height, width) * scale >= 1:
        assert max(0, height * scale - 1.001) <= rows <= height * scale + 0.001
        assert max(0, width * scale - 1.001) <= cols <= width * scale + 0.001
    assert fit_grid(p, p, resolution * p, p, "floor") == (resolution, resolution)


@given(sides, sides, st.integers(1, 32), st.sampled_from([8, 16, 32]))
def test_ceiled_grids_are_the_largest_within_the_tokens(height, width, side, p):
    rows, cols = fit_grid(height, width, side * p, p, "ceil")
    assert rows * cols <= side**2
    if max(height, width) <= side**2 * min(height, width):  # else one side is a single patch
        larger = [
            math.ceil(height * scale) * math.ceil(width * scale)
            for scale in np.geomspace(0.1, 3, 2000) * side / (height * width) ** 0.5
        ]
        assert rows * cols >= max(n for n in larger if n <= side**2)


@given(st.randoms(use_true_random=False), sides, sides, st.floats(0.05, 0.9), st.floats(1, 2))
def test_inception_crops_have_their_own_shape(rng, height, width, smallest, aspect):
    top, left, h, w = draw_inception_box(rng, (height, width), smallest, aspect)
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    if (h, w) != (height, width) and min(h, w) > 8:
        assert 1 / aspect - 0.1 <= w / h <= aspect + 0.1
        assert smallest * height * width * 0.85 <= h * w


def test_square_views_squash_their_crops_and_those_of_teachers():
    config = ViewsConfig(
        resolution=ResolutionConfig(low=240, high=240), crop=0.3, crop_aspect=4 / 3, square=True
    )
    views = [draw_view(Random(seed), (300, 400), config) for seed in range(50)]
    assert {view.grid for view in views} == {(15, 15)}
    assert len({view.box for view in views}) == 50
    assert {same_crop(view, 16, 384).grid for view in views} == {(24, 24)}
    wide = same_crop(draw_view(Random(0), (300, 400), ViewsConfig(resolution=config.resolution)), 16, 384)
    assert wide.grid == (21, 28)


@given(sides, sides, st.integers(32, 1024), st.sampled_from([(16, 8), (16, 12), (15, 4), (32, 1)]))
def test_grids_of_overlapping_patches_span_the_area(height, width, resolution, patches):
    p, stride = patches
    rows, cols = fit_grid(height, width, resolution, p, stride=stride)
    view = View((rows, cols), (p, p), rows * cols, (0, 0, height, width), stride=stride)
    scale = resolution / (height * width) ** 0.5
    if min(height, width) * scale > p + 0.001:
        assert abs(view.height - height * scale) <= stride / 2 + 0.001
        assert abs(view.width - width * scale) <= stride / 2 + 0.001
    elif min(height, width) * scale < p - 0.001:
        assert min(view.height, view.width) == p
        assert abs(view.height * view.width - max(p * p, resolution**2)) <= p * stride / 2 + 0.001
    limit = max(1, rows * cols // 2)
    assert np.prod(largest_grid(height, width, limit, p / stride - 1)) <= limit


@given(st.randoms(use_true_random=False), sides, sides, st.sampled_from(["nearest", "floor", "ceil"]))
def test_a_stride_as_long_as_the_patch_changes_nothing(rng, height, width, rounding):
    state = rng.getstate()
    drawn = []
    for strides in ((), (16,)):
        rng.setstate(state)
        config = ViewsConfig((16,), strides=strides, budget=100, rounding=rounding, crop=0.5)
        drawn.append((draw_view(rng, (height, width), config), rng.getstate()))
    assert drawn[0] == drawn[1]


def test_strides_meet_a_budget_and_leave_no_gaps():
    config = ViewsConfig((12, 16), strides=(6, 8, 12), resolution=ResolutionConfig(64, 256), budget=150)
    views = [draw_view(Random(seed), (300, 400), config) for seed in range(3000)]
    assert {(view.patch_size, view.stride) for view in views} == {
        (p, None if stride == p else stride) for p in (12, 16) for stride in (6, 8, 12)
    }
    assert abs(sum(view.num_tokens for view in views) / len(views) / 150 - 1) < 0.03
    for strides in ((0,), (6, 13), (8, 8)):
        with pytest.raises(ValueError, match=r"views\.strides"):
            ViewsConfig((12, 16), strides=strides)
    with pytest.raises(ValueError, match="leave no gaps"):
        View((2, 2), (8, 8), 4, (0, 0, 32, 32), stride=9)


def test_full_view_of_a_divisible_image_is_its_own_size():
    view = full_view((96, 160), 16)
    assert (view.height, view.width, view.num_tokens) == (96, 160, 60)
    assert view.drop_rate == 0


@pytest.mark.parametrize(("rows", "cols", "tokens"), [(0, 3, 1), (2, 2, 0), (2, 2, 5)])
def test_impossible_views_are_refused(rows, cols, tokens):
    with pytest.raises(ValueError, match="cannot keep"):
        View((rows, cols), (16, 16), tokens, (0, 0, 1, 1))


def test_seeds_depend_on_every_part():
    seeds = {derive_seed(*parts) for parts in [(1, 2, "a"), (12, "a"), (1, "2a"), (1, 2, "b"), (2, 1, "a")]}
    assert len(seeds) == 5
    assert derive_seed(1, "x") == derive_seed(1, "x")
