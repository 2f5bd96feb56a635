"""Helpers that tests of several modules share: importlib mode has no module to import them from."""

from collections.abc import Callable

import numpy as np
import pytest
from einops import rearrange

from packvit.packing import PackedImage

CutImage = Callable[..., PackedImage]


@pytest.fixture(scope="session")
def cut_image() -> CutImage:
    """cut_image(pixels, patch_size, keep=None, **fields): uint8 [H, W, 3] to a PackedImage."""

    def cut(pixels: np.ndarray, patch_size: int, keep: np.ndarray | None = None, **fields) -> PackedImage:
        rows, cols = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
        patches = rearrange(pixels, "(r p) (c q) ch -> (r c) (p q ch)", p=patch_size, q=patch_size)
        coords = np.stack(np.divmod(np.arange(rows * cols), cols), 1).astype(np.int32)
        if keep is not None:
            patches, coords = patches[keep], coords[keep]
        native = (pixels.shape[0], pixels.shape[1])
        return PackedImage(np.ascontiguousarray(patches), coords, (rows, cols), patch_size, native, **fields)

    return cut
