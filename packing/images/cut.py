"""From pixels to patches."""

import numpy as np
from einops import rearrange

from packvit.packing.batch.image import PackedImage
from packvit.packing.views.view import View


def cut_patches(image: np.ndarray, patch_size: int) -> np.ndarray:
    """Patches in raster order: uint8 [H, W, 3] -> uint8 [rows*cols, p*p*3], row-major (row, col, channel).

    Raises:
        ValueError: p does not divide both sides.
    """
    height, width, _ = image.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"patch size {patch_size} does not divide an image of {height}x{width} pixels")
    return rearrange(image, "(r p) (c q) ch -> (r c) (p q ch)", p=patch_size, q=patch_size)


def cut_whole(pixels: np.ndarray, view: View, native_size: tuple[int, int], key: str = "") -> PackedImage:
    """All patches of pixels that already have the view's size, uint8 [view.height, view.width, 3].

    Args:
        native_size, key: see PackedImage.
    """
    patches = cut_patches(pixels, view.patch_size)
    coords = np.indices(view.grid, np.int32).reshape(2, -1).T
    return PackedImage({view.cell: patches}, coords, view.grid, view.cell, native_size, key)
