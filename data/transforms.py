"""From pixels to kept patches: cut, drop, present."""

import numpy as np
from einops import rearrange

from packvit.data.decode import decode
from packvit.packing import PackedImage, View


def cut_patches(image: np.ndarray, patch_size: int) -> np.ndarray:
    """Patches in raster order: uint8 [H, W, 3] -> uint8 [rows*cols, p*p*3], row-major (row, col, channel).

    Raises:
        ValueError: p does not divide both sides.
    """
    height, width, _ = image.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"patch size {patch_size} does not divide an image of {height}x{width} pixels")
    return rearrange(image, "(r p) (c q) ch -> (r c) (p q ch)", p=patch_size, q=patch_size)


def kept_positions(seed: int, view: View) -> np.ndarray:
    """Raster positions of the kept tokens, sorted: int64 [num_tokens]. NaViT 3.3.

    Uniform without replacement, decided by `seed` (up to 128 bits) alone; for the same seed and grid, fewer
    tokens are a subset of more.
    """
    patches = view.rows * view.cols
    if view.num_tokens == patches:
        return np.arange(patches)
    order = np.random.Generator(np.random.Philox(key=seed)).random(patches).argsort(kind="stable")
    return np.sort(order[: view.num_tokens])


def present(
    data: bytes, view: View, native_size: tuple[int, int], seed: int, label: int | None, key: str
) -> PackedImage:
    """Decode, cut and drop: an encoded file as its view shows it.

    Args:
        data: the whole file.
        native_size: upright (height, width) from the header.
        seed: of dropping.

    Raises:
        ValueError: see `decode`.
    """
    return cut_image(decode(data, view, native_size), view, native_size, seed, label, key)


def cut_image(
    pixels: np.ndarray, view: View, native_size: tuple[int, int], seed: int, label: int | None, key: str
) -> PackedImage:
    """The kept patches of pixels that already have the view's size, uint8 [view.height, view.width, 3]."""
    patches = cut_patches(pixels, view.patch_size)
    kept = kept_positions(seed, view)
    coords = np.stack(np.divmod(kept, view.cols), 1).astype(np.int32)
    if view.num_tokens < len(patches):
        patches = patches[kept]
    return PackedImage(patches, coords, (view.rows, view.cols), view.patch_size, native_size, label, key)
