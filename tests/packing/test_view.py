"""Views and grids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import View, derive_seed, full_view
from packvit.packing.views.view import fit_grid, largest_grid, shrink_grid

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
