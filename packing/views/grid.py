"""Grids: how many whole patches an image of a given shape has at a given area."""

import math
from collections.abc import Callable
from typing import Literal, assert_never

Rounding = Literal["nearest", "floor", "ceil"]  # see ViewsConfig
SLACK = 1e-6  # patches: sides nearer than this are equal


def fit_grid(
    height: float,
    width: float,
    resolution: float,
    patch_size: int,
    rounding: Rounding = "nearest",
    stride: int | None = None,
) -> tuple[int, int]:
    """Rows and columns, each at least 1, with about the area `resolution`**2 and the image's aspect ratio.

    NaViT 3.2; see `ViewsConfig.rounding`. Overlapping patches, one every `stride` pixels, span (rows - 1) *
    stride + patch_size pixels.
    """
    stride = stride or patch_size
    # All in units of strides, of which a patch covers 1 + overlap.
    side, overlap = resolution / stride, patch_size / stride - 1
    match rounding:
        case "nearest":
            return _round_grid(height, width, side, round, overlap)
        case "floor":
            return _round_grid(height, width, side, _floor, overlap)
        case "ceil":
            most = max(1, int(max(0.0, side - overlap) ** 2 + SLACK))
            return _largest(height, width, most, math.ceil, overlap)
        case _ as unknown:
            assert_never(unknown)


def _floor(side: float) -> int:
    """Sides of whole patches lose none of them to the last digit of a float."""
    return math.floor(side + SLACK)


def _round_grid(
    height: float, width: float, side: float, whole: Callable[[float], int], overlap: float
) -> tuple[int, int]:
    """The grid of the area `side`**2 in strides, its sides made `whole`."""
    scale, patch = side / math.sqrt(height * width), 1 + overlap
    # A side shorter than a patch becomes one patch, and the other side has the whole area.
    rows = height * scale if width * scale >= patch else side**2 / patch
    cols = width * scale if height * scale >= patch else side**2 / patch
    return max(1, whole(rows - overlap)), max(1, whole(cols - overlap))


def _largest(
    height: float, width: float, max_tokens: int, whole: Callable[[float], int], overlap: float
) -> tuple[int, int]:
    """The largest of the grids of any area that has at most `max_tokens` tokens."""
    # Sides: one whose grid fits, and one whose grid does not.
    low, high = 0.0, (2 * math.sqrt(max_tokens) + 2) * (1 + overlap)
    while high - low > SLACK:
        middle = (low + high) / 2
        if math.prod(_round_grid(height, width, middle, whole, overlap)) <= max_tokens:
            low = middle
        else:
            high = middle
    return _round_grid(height, width, low, whole, overlap) if low > 0 else (1, 1)


def shrink_grid(rows: int, cols: int, max_tokens: int) -> tuple[int, int]:
    """The largest grid of about the same aspect ratio with at most `max_tokens` cells."""
    if rows * cols <= max_tokens:
        return rows, cols
    scale = math.sqrt(max_tokens / (rows * cols))
    # A side that would fall below one patch stays at one; the other side takes what is left.
    new_rows = max(1, min(max_tokens, int(rows * scale)))
    new_cols = max(1, min(max_tokens // new_rows, int(cols * scale)))
    return min(new_rows, max_tokens // new_cols), new_cols


def largest_grid(height: float, width: float, max_tokens: int, overlap: float = 0.0) -> tuple[int, int]:
    """The largest grid of at most `max_tokens` tokens that `fit_grid` returns at any resolution.

    Args:
        overlap: patch size / stride - 1.

    Raises:
        ValueError: no token is allowed.
    """
    if max_tokens < 1:
        raise ValueError(f"a grid of at most {max_tokens} tokens holds none")
    return _largest(height, width, max_tokens, round, overlap)
