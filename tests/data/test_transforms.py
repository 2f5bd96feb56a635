"""Cutting loses no pixel; dropping is uniform, reproducible and nested."""

import io
from typing import get_args

import numpy as np
import pytest
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from packvit.data.samples.cut import DropPattern, cut_image, cut_views, kept_positions
from packvit.data.samples.decode import decode
from packvit.data.samples.sample import Decoded
from packvit.packing import View, cut_patches, derive_seed

SIDES = st.integers(1, 6)


def view_of(rows: int, cols: int, num_tokens: int, patch_size: int = 4) -> View:
    return View(
        (rows, cols), (patch_size, patch_size), num_tokens, (0, 0, rows * patch_size, cols * patch_size)
    )


def noise(rows: int, cols: int, patch_size: int) -> np.ndarray:
    shape = (rows * patch_size, cols * patch_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@given(SIDES, SIDES, st.integers(1, 9))
def test_patches_put_together_are_the_image(rows, cols, p):
    image = noise(rows, cols, p)
    patches = cut_patches(image, p)
    assert patches.shape == (rows * cols, p * p * 3)
    together = rearrange(patches, "(r c) (p q ch) -> (r p) (c q) ch", r=rows, p=p, q=p)
    np.testing.assert_array_equal(together, image)


def test_patches_are_in_raster_order_and_row_major_inside():
    image = noise(2, 3, 2)
    np.testing.assert_array_equal(cut_patches(image, 2)[4], image[2:4, 2:4].reshape(-1))


@pytest.mark.parametrize("shape", [(9, 8, 3), (8, 9, 3)])
def test_a_patch_size_must_divide_both_sides(shape):
    with pytest.raises(ValueError, match=f"patch size 4 does not divide an image of {shape[0]}x{shape[1]}"):
        cut_patches(np.zeros(shape, np.uint8), 4)


@given(SIDES, SIDES, st.integers(0, 2**128 - 1), st.sampled_from(get_args(DropPattern)), st.data())
def test_kept_positions_are_sorted_unique_and_nested(rows, cols, seed, pattern, data):
    more = data.draw(st.integers(1, rows * cols))
    fewer = data.draw(st.integers(1, more))
    patches = cut_patches(noise(rows, cols, 4), 4)
    kept = kept_positions(seed, view_of(rows, cols, more), pattern, patches)
    assert len(kept) == more
    assert (np.diff(kept) > 0).all()
    assert 0 <= kept[0] <= kept[-1] < rows * cols
    assert set(kept_positions(seed, view_of(rows, cols, fewer), pattern, patches)) <= set(kept)
    np.testing.assert_array_equal(kept, kept_positions(seed, view_of(rows, cols, more), pattern, patches))


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 2**128 - 1), st.data())
def test_a_dropped_block_hangs_together(rows, cols, seed, data):
    view = view_of(rows, cols, data.draw(st.integers(1, rows * cols - 1)))
    dropped = np.ones((rows, cols), bool)
    dropped[np.divmod(kept_positions(seed, view, "block"), cols)] = False
    cells = {(int(r), int(c)) for r, c in np.argwhere(dropped)}
    found = waiting = {min(cells)}
    while waiting:
        waiting = {(r + i, c + j) for r, c in waiting for i in (-1, 0, 1) for j in (-1, 0, 1)} & cells - found
        found = found | waiting
    assert found == cells


def test_patches_that_vary_more_are_kept_more_often():
    image = np.full((16, 16, 3), 128, np.uint8)
    image[4:8, 8:12] = noise(1, 1, 4)
    patches = cut_patches(image, 4)
    kept = [kept_positions(seed, view_of(4, 4, 3), "importance", patches) for seed in range(400)]
    counts = np.bincount(np.concatenate(kept), minlength=16)
    assert counts[6] == 400
    others = np.delete(counts, 6)  # share the two other places evenly
    assert others.min() > 0.5 * 800 / 15
    assert others.max() < 1.6 * 800 / 15


def test_nothing_dropped_keeps_every_position():
    np.testing.assert_array_equal(kept_positions(7, view_of(3, 5, 15)), np.arange(15))


def test_kept_positions_are_uniform():
    draws, view = 3000, view_of(3, 4, 5)
    counts = np.zeros(12)
    pairs = np.zeros((12, 12))
    for index in range(draws):
        kept = kept_positions(derive_seed("uniform", index), view)
        counts[kept] += 1
        pairs[np.ix_(kept, kept)] += 1
    # Six standard deviations of the binomial counts, for single positions and for pairs of them.
    one, two = 5 / 12, 5 * 4 / (12 * 11)
    assert np.abs(counts - draws * one).max() < 6 * np.sqrt(draws * one * (1 - one))
    off_diagonal = pairs[~np.eye(12, dtype=bool)]
    assert np.abs(off_diagonal - draws * two).max() < 6 * np.sqrt(draws * two * (1 - two))


def test_an_image_is_cut_into_its_kept_patches():
    image, view = noise(3, 4, 4), view_of(3, 4, 5)
    [cut] = cut_views(Decoded("a/b", (99, 77), 3, [view], [image], [{"label": 6}]), {})
    assert (cut.grid, cut.cell, cut.native_size, cut.key) == ((3, 4), (4, 4), (99, 77), "a/b")
    assert cut.targets == {"label": 6}
    assert list(cut.patches) == [(4, 4)]
    patches = cut.patches[4, 4]
    assert patches.dtype == np.uint8
    assert cut.coords.dtype == np.int32
    assert patches.shape == (5, 48)
    np.testing.assert_array_equal(cut.coords @ [4, 1], kept_positions(3, view))
    for patch, (row, col) in zip(patches, cut.coords, strict=True):
        np.testing.assert_array_equal(patch, image[4 * row : 4 * row + 4, 4 * col : 4 * col + 4].reshape(-1))


def test_a_file_is_presented_as_its_view_shows_it():
    image = noise(4, 5, 4)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    view = View((2, 3), (4, 4), 4, (4, 8, 8, 12), flip=True)
    shown = cut_image(decode(buffer.getvalue(), view, (16, 20)), view, (16, 20), "k", 11)
    by_hand = cut_image(image[4:12, 8:20][:, ::-1], view, (16, 20), "k", 11)
    assert shown.patches.keys() == by_hand.patches.keys() == {(4, 4)}
    np.testing.assert_array_equal(shown.patches[4, 4], by_hand.patches[4, 4])
    np.testing.assert_array_equal(shown.coords, by_hand.coords)
    assert (shown.targets, shown.key, shown.native_size) == ({}, "k", (16, 20))
