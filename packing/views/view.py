"""A view: how one image is shown to the model, drawn before any pixel is decoded.

The grid keeps the requested area and the aspect ratio as closely as whole patches allow (NaViT 3.2).
`View.num_tokens` is the only place where the number of tokens of an image is decided.

Every function takes its randomness as an argument; the caller derives it from (seed, epoch, sample key), so
that a view is the same however often and in whichever process it is drawn.
"""

import hashlib
import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, assert_never

from packvit.packing.views.config import (
    STEPS,
    DropConfig,
    ResolutionConfig,
    ViewsConfig,
    budget_shares,
)
from packvit.packing.views.grid import fit_grid, shrink_grid

RATE_DEVIATION = 0.02  # of rates that depend on the resolution; NaViT A.4
LARGEST_RATE = 0.999  # one token stays anyway
ATTEMPTS = 100  # to draw a crop that fits


@dataclass(frozen=True, slots=True)
class View:
    """The plan for one image. Sizes are in cells (grid), in pixels of the resized image (cell) or of the
    stored image (box).

    Args:
        grid: (rows, cols) of patches before dropping, each at least 1.
        cell: (height, width) of a patch.
        num_tokens: kept tokens, 1..rows*cols.
        box: (top, left, height, width) of the crop in native pixels.
        flip: whether left and right are mirrored.
        shrunk: whether the resolution is lower than was drawn, so that the view fits a sequence.
        square: whether the box is squashed to a square, whatever its shape.
        stride: pixels from one patch to the next if patches overlap; None: the patch's side, also if that is
            given.

    Raises:
        ValueError: the grid is empty, or cannot keep so many tokens; or patches would leave gaps.
    """

    grid: tuple[int, int]
    cell: tuple[int, int]
    num_tokens: int
    box: tuple[int, int, int, int]
    flip: bool = False
    shrunk: bool = False
    square: bool = False
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.stride is not None:
            if not 1 <= self.stride <= min(self.cell):
                raise ValueError(
                    f"stride={self.stride} must lie in 1..{min(self.cell)}: patches may overlap and leave no "
                    "gaps"
                )
            if self.cell == (self.stride, self.stride):
                object.__setattr__(self, "stride", None)
        if min(self.grid) < 1 or not 1 <= self.num_tokens <= self.num_cells:
            raise ValueError(
                f"view of {'x'.join(map(str, self.grid))} patches cannot keep {self.num_tokens} tokens"
            )

    @property
    def num_cells(self) -> int:
        """Tokens before dropping."""
        return math.prod(self.grid)

    @property
    def patch_size(self) -> int:
        """Side of a square cell in pixels."""
        return self.cell[-1]

    @property
    def height(self) -> int:
        """Pixels of the resized image."""
        return (self.grid[0] - 1) * (self.stride or self.cell[0]) + self.cell[0]

    @property
    def width(self) -> int:
        """Pixels of the resized image."""
        return (self.grid[1] - 1) * (self.stride or self.cell[1]) + self.cell[1]

    @property
    def drop_rate(self) -> float:
        """Fraction of the grid's tokens that is removed."""
        return 1 - self.num_tokens / self.num_cells


def draw_view(
    rng: Random, native: tuple[int, int], config: ViewsConfig, max_tokens: int | None = None
) -> View:
    """A training view of an image of `native` (height, width) pixels.

    Args:
        config: a configuration that does not change with the images seen; see `views_at`.
        max_tokens: a longer view is shown at a lower resolution; None: as drawn.
    """
    draw = draw_inception_box if config.square else draw_box
    box = draw(rng, native, config.crop, config.crop_aspect)
    return _show(rng, box, rng.random() < config.flip, config, max_tokens)


def draw_again(rng: Random, view: View, config: ViewsConfig, max_tokens: int | None = None) -> View:
    """The crop and flip of `view` at a resolution, patch size and drop rate drawn anew; see `draw_view`."""
    return _show(rng, view.box, view.flip, config, max_tokens)


def _show(
    rng: Random, box: tuple[int, int, int, int], flip: bool, config: ViewsConfig, max_tokens: int | None
) -> View:
    """A view of this crop and flip; all else is drawn."""
    resolution = draw_resolution(rng, config.resolution)
    patch_size = rng.choices(config.patch_sizes, config.patch_weights or None)[0]
    stride = config.strides[0] if config.strides else patch_size
    if len(config.strides) > 1:
        stride = rng.choice(config.strides)
    if config.budget is not None:
        resolution = draw_within_budget(rng, config, patch_size, stride)
    if not config.resolution.upscale:
        resolution = min(resolution, math.sqrt(box[2] * box[3]))
    shape = (1, 1) if config.square else box[2:]
    rows, cols = fit_grid(*shape, resolution, patch_size, config.rounding, stride)
    share = config.token_share(rows * cols) if config.drop.kind == "resolution" else 0.0
    rate = draw_rate(rng, config.drop, share)
    num_tokens = kept_tokens(rows * cols, rate)
    shrunk = max_tokens is not None and num_tokens > max_tokens
    if max_tokens is not None and shrunk:
        rows, cols = shrink_grid(rows, cols, max(max_tokens, int(max_tokens / (1 - rate))))
        num_tokens = min(max_tokens, kept_tokens(rows * cols, rate))
    cell = (patch_size, patch_size)
    return View((rows, cols), cell, num_tokens, box, flip, shrunk, config.square, stride)


def full_view(
    native: tuple[int, int], patch_size: int, resolution: float | None = None, stride: int | None = None
) -> View:
    """The evaluation view: whole image, nothing dropped; `resolution` None keeps the native area."""
    height, width = native
    resolution = resolution or math.sqrt(height * width)
    grid = fit_grid(height, width, resolution, patch_size, stride=stride)
    return View(grid, (patch_size, patch_size), math.prod(grid), (0, 0, height, width), stride=stride)


def same_crop(view: View, patch_size: int, resolution: float) -> View:
    """The crop and flip of `view` at another patch size and resolution, nothing dropped, without overlap."""
    grid = fit_grid(*((1, 1) if view.square else view.box[2:]), resolution, patch_size)
    cell, num_tokens = (patch_size, patch_size), math.prod(grid)
    return replace(view, grid=grid, cell=cell, num_tokens=num_tokens, shrunk=False, stride=None)


def draw_resolution(rng: Random, config: ResolutionConfig) -> float:
    """Side in pixels. NaViT 3.2, A.1."""
    if config.sides:
        return rng.choices(config.sides, config.weights or None)[0]
    match config.distribution:
        case "uniform":
            u = rng.uniform(-1, 1)
        case "normal":
            u = rng.gauss(config.mean, config.std)
            while not -1 <= u <= 1:
                u = rng.gauss(config.mean, config.std)
        case _ as unknown:
            assert_never(unknown)
    return side_at((u + 1) / 2, config.low, config.high, config.measure)


def draw_within_budget(rng: Random, config: ViewsConfig, patch_size: int, stride: int) -> float:
    """Side in pixels, so that views have `config.budget` tokens on average."""
    shares = budget_shares(config)[patch_size, stride]
    place = bisect_right(shares, rng.random(), hi=len(shares) - 1)
    if config.resolution.sides:
        return config.resolution.sides[place]
    r = config.resolution
    return side_at((place + rng.random()) / STEPS, r.low, r.high, r.measure)


def draw_rate(rng: Random, config: DropConfig, share: float = 0.0) -> float:
    """Drop rate in [0, 1) of a view with this `token_share`. NaViT A.4."""
    match config.kind:
        case "none":
            return 0.0
        case "constant":
            return config.mean
        case "resolution":
            offset = rng.gauss(0, RATE_DEVIATION)
            while abs(offset) > 2 * RATE_DEVIATION:
                offset = rng.gauss(0, RATE_DEVIATION)
            return min(LARGEST_RATE, max(0.0, float(config.mean_rate(share)) + offset))
        case "beta":
            m = config.mean / config.maximum
            # Variance 0.3 m (1 - m) means a + b = 1 / 0.3 - 1 = 7 / 3.
            return min(LARGEST_RATE, config.maximum * rng.betavariate(m * 7 / 3, (1 - m) * 7 / 3))
        case "schedule":
            raise AssertionError("schedules are resolved by views_at")
        case _ as unknown:
            assert_never(unknown)


def draw_box(
    rng: Random, native: tuple[int, int], smallest: float, aspect: float = 1.0
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of at least `smallest` of the image's area.

    Its aspect ratio differs from the image's by a factor of at most `aspect`, or less if a larger crop would
    not fit.
    """
    height, width = native
    if smallest >= 1:
        return 0, 0, height, width
    share = rng.uniform(smallest, 1)
    stretch = 1.0
    if aspect > 1:
        limit = min(math.log(aspect), -math.log(share))
        stretch = math.exp(rng.uniform(-limit, limit) / 2)
    scale = math.sqrt(share)
    h, w = max(1, round(height * scale * stretch)), max(1, round(width * scale / stretch))
    return rng.randint(0, height - h), rng.randint(0, width - w), h, w


def draw_inception_box(
    rng: Random, native: tuple[int, int], smallest: float, aspect: float = 1.0
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop as Inception's training draws it (arXiv 1409.4842, 6).

    Its width / height is uniform in [1 / aspect, aspect], its height uniform among those that give at least
    `smallest` of the image's area and fit into the image, as in TensorFlow's sample_distorted_bounding_box.
    An image too elongated for any such crop is shown whole.
    """
    height, width = native
    if smallest >= 1:
        return 0, 0, height, width
    for _ in range(ATTEMPTS):
        ratio = rng.uniform(1 / aspect, aspect)
        least = math.sqrt(smallest * height * width / ratio)
        most = min(math.sqrt(height * width / ratio), height, width / ratio)
        if least <= most:
            side = rng.uniform(least, most)
            h, w = max(1, round(side)), min(width, max(1, round(side * ratio)))
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    return 0, 0, height, width


def kept_tokens(num_patches: int, rate: float) -> int:
    """Tokens left of `num_patches` at drop rate `rate`; at least one (NaViT A.4)."""
    return max(1, round(num_patches * (1 - rate)))


def side_at(share: float, low: float, high: float, measure: Literal["side", "area"]) -> float:
    """Side in pixels at a share, 0..1, of the range from `low` to `high` by `side` or by `area`.

    `ResolutionConfig.weighed_sides` is the same for many shares at once.
    """
    match measure:
        case "side":
            return low + share * (high - low)
        case "area":
            return math.sqrt(low**2 + share * (high**2 - low**2))
        case _ as unknown:
            assert_never(unknown)


def derive_seed(*parts: int | str) -> int:
    """128 bits that depend on every part and on nothing else: the root of all randomness of a sample."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
