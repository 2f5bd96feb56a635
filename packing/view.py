"""A view: how one image is shown to the model, decided before any pixel is decoded.

The grid keeps the area that was asked for and, as nearly as whole patches allow, the aspect ratio
(NaViT 3.2). `View.num_tokens` is the one place where the number of tokens of an image is decided.
"""

import hashlib
import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """The plan for one image; sizes in patches (grid) or native pixels (box).

    Args:
        rows, cols: the grid before dropping, each at least 1.
        patch_size: side of a patch in pixels of the resized image.
        num_tokens: kept tokens, 1..rows*cols.
        box: (top, left, height, width) of the crop in native pixels.
        flip: mirror left and right.
        shrunk: whether it is shown at a lower resolution than was drawn, to fit a sequence.
    """

    rows: int
    cols: int
    patch_size: int
    num_tokens: int
    box: tuple[int, int, int, int]
    flip: bool = False
    shrunk: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1 or not 1 <= self.num_tokens <= self.rows * self.cols:
            raise ValueError(f"view of {self.rows}x{self.cols} patches cannot keep {self.num_tokens} tokens")

    @property
    def height(self) -> int:
        """Pixels of the resized image, a multiple of the patch size."""
        return self.rows * self.patch_size

    @property
    def width(self) -> int:
        """Pixels of the resized image, a multiple of the patch size."""
        return self.cols * self.patch_size

    @property
    def drop_rate(self) -> float:
        """Fraction of the grid's tokens that is removed."""
        return 1 - self.num_tokens / (self.rows * self.cols)


def fit_grid(height: float, width: float, resolution: float, patch_size: int) -> tuple[int, int]:
    """Rows and columns, each at least 1, nearest to the area `resolution`**2 at the image's aspect ratio."""
    scale = resolution / math.sqrt(height * width) / patch_size
    # A side shorter than a patch becomes one patch, and the other side has the whole area.
    area = (resolution / patch_size) ** 2
    rows = height * scale if width * scale >= 1 else area
    cols = width * scale if height * scale >= 1 else area
    return max(1, round(rows)), max(1, round(cols))


def shrink_grid(rows: int, cols: int, max_tokens: int) -> tuple[int, int]:
    """The largest grid of about the same aspect ratio with at most `max_tokens` cells."""
    if rows * cols <= max_tokens:
        return rows, cols
    scale = math.sqrt(max_tokens / (rows * cols))
    # A side that would fall below one patch stays at one; the other side takes what is left.
    new_rows = max(1, min(max_tokens, int(rows * scale)))
    new_cols = max(1, min(max_tokens // new_rows, int(cols * scale)))
    return min(new_rows, max_tokens // new_cols), new_cols


def derive_seed(*parts: int | str) -> int:
    """128 bits that depend on every part and on nothing else: the root of all randomness of a sample."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
