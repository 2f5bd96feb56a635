"""From pixels to patches."""

import math

import numpy as np
from einops import rearrange

from packvit.packing.batch.image import PackedImage
from packvit.packing.views.view import View


def cut_patches(image: np.ndarray, patch_size: int, stride: int | None = None) -> np.ndarray:
    """Patches in raster order: uint8 [H, W, 3] -> uint8 [rows*cols, p*p*3], row-major (row, col, channel).

    Args:
        stride: pixels from one patch to the next where they overlap; None: p.

    Raises:
        ValueError: patches do not cover the image exactly: p does not divide both sides, or the stride does
            not divide what a patch leaves of them.
    """
    height, width, _ = image.shape
    if stride is not None:
        if min(height, width) < patch_size or (height - patch_size) % stride or (width - patch_size) % stride:
            raise ValueError(
                f"patches of {patch_size} pixels every {stride} do not cover an image of "
                f"{height}x{width} pixels"
            )
        windows = np.lib.stride_tricks.sliding_window_view(image, (patch_size, patch_size), (0, 1))
        return rearrange(windows[::stride, ::stride], "r c ch p q -> (r c) (p q ch)")
    if height % patch_size or width % patch_size:
        raise ValueError(f"patch size {patch_size} does not divide an image of {height}x{width} pixels")
    return rearrange(image, "(r p) (c q) ch -> (r c) (p q ch)", p=patch_size, q=patch_size)


def cut_whole(pixels: np.ndarray, view: View, native_size: tuple[int, int], key: str = "") -> PackedImage:
    """All patches of pixels that already have the view's size, uint8 [view.height, view.width, 3].

    Args:
        native_size, key: see PackedImage.
    """
    patches = cut_patches(pixels, view.patch_size, view.stride)
    return place_patches(patches, np.arange(len(patches)), view, native_size, key)


def place_patches(
    patches: np.ndarray, positions: np.ndarray, view: View, native_size: tuple[int, int], key: str
) -> PackedImage:
    """Patches of a view, each at its place.

    Args:
        patches: uint8 [n, p*p*3].
        positions: int [n], raster positions in the view's grid.
        native_size, key: see PackedImage.
    """
    coords = np.stack(np.divmod(positions, view.grid[1]), 1).astype(np.int32)
    if view.stride is None:
        return PackedImage({view.cell: patches}, coords, view.grid, view.cell, native_size, key)
    # Both the patch and the stride are whole numbers of cells.
    side = math.gcd(view.patch_size, view.stride)
    return PackedImage(
        {view.cell: patches},
        coords * (view.stride // side),
        (view.height // side, view.width // side),
        (side, side),
        native_size,
        key,
        np.full_like(coords, view.patch_size // side),
        view.grid,
    )
