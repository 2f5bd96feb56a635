"""Draw a view: resolution, patch size and drop rate of one image.

Resolution follows NaViT 3.2 and A.1, patch size FlexiViT 3.2, dropping NaViT A.4. Every function takes
its randomness as an argument; the caller derives it from (seed, epoch, sample key), so that a view is
the same however often, and in whichever process, it is drawn.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any, Literal

import numpy as np

from packvit.packing.budget import tilt
from packvit.packing.view import View, fit_grid, shrink_grid

RATE_DEVIATION = 0.02  # of rates that depend on the resolution; NaViT A.5
LARGEST_RATE = 0.999  # one token stays anyway
BUDGET_STEPS = 256  # parts of the range of resolutions that a budget weighs


@dataclass(frozen=True)
class ResolutionConfig:
    """Side of the square with the view's area, in pixels (NaViT 3.2, A.1).

    Args:
        low, high: the range in pixels.
        distribution: of u in [-1, 1], which is mapped linearly to the range: uniform, or a normal
            truncated to [-1, 1].
        mean, std: of the normal before truncation; the paper's best is N(-0.5, 1).
        measure: whether u is mapped to the side or to the area.
        upscale: False never shows an image larger than it is stored.
    """

    low: int = 64
    high: int = 256
    distribution: Literal["uniform", "normal"] = "normal"
    mean: float = -0.5
    std: float = 1.0
    measure: Literal["side", "area"] = "side"
    upscale: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(
                f"views.resolution: needs 1 <= low <= high, got low={self.low}, high={self.high}"
            )
        if self.std <= 0:
            raise ValueError(f"views.resolution.std={self.std} must be positive")


@dataclass(frozen=True)
class DropConfig:
    """Fraction of an image's tokens removed in training (NaViT A.4, A.5).

    Args:
        kind: none; constant: always `mean`; beta: `maximum` * u, u ~ Beta with mean m = mean / maximum and
            variance 0.3 m (1 - m); resolution: normal with deviation 0.02, cut off at twice that, around a
            rate that grows with the view's tokens from `minimum`, at the fewest that can be drawn, to
            `maximum`.
        mean: expected drop rate of constant and beta.
        maximum: upper end of beta's and of resolution's range.
        minimum: lower end of resolution's range.
    """

    kind: Literal["none", "constant", "beta", "resolution"] = "none"
    mean: float = 0.5
    maximum: float = 0.9
    minimum: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.mean < 1:
            raise ValueError(f"views.drop.mean={self.mean} must lie in [0, 1)")
        if self.kind == "beta" and not 0 < self.mean < self.maximum <= 1:
            raise ValueError(
                f"views.drop: beta needs 0 < mean < maximum <= 1, not {self.mean} and {self.maximum}"
            )
        if self.kind == "resolution" and not 0 <= self.minimum <= self.maximum < 1:
            raise ValueError(
                f"views.drop: resolution needs 0 <= minimum <= maximum < 1, not {self.minimum} and "
                f"{self.maximum}"
            )


@dataclass(frozen=True)
class ViewsConfig:
    """How views are drawn in training.

    Args:
        patch_sizes: sides in pixels, drawn for every image (FlexiViT 3.2).
        patch_weights: relative weight of each patch size; empty means equal.
        resolution, drop: see their classes.
        budget: mean tokens of a view, met by showing small patches at lower and large ones at higher
            resolutions of the range; S / budget images fit in a sequence. None leaves the resolutions as they
            are. Views that are shrunk to fit S or are not upscaled lower the mean.
        crop: smallest share of the image's area that a random crop keeps; 1 shows the whole image.
        crop_aspect: largest factor by which a crop's aspect ratio differs from the image's; 1 keeps it.
        flip: probability of mirroring left and right.
    """

    patch_sizes: tuple[int, ...] = (16,)
    patch_weights: tuple[float, ...] = ()
    resolution: ResolutionConfig = field(default_factory=ResolutionConfig)
    drop: DropConfig = field(default_factory=DropConfig)
    budget: float | None = None
    crop: float = 1.0
    crop_aspect: float = 1.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        if not self.patch_sizes or min(self.patch_sizes) < 1:
            raise ValueError(f"views.patch_sizes={self.patch_sizes} needs at least one size, all positive")
        if len(set(self.patch_sizes)) != len(self.patch_sizes):
            raise ValueError(f"views.patch_sizes={self.patch_sizes} names a size twice")
        if self.patch_weights and len(self.patch_weights) != len(self.patch_sizes):
            raise ValueError("views.patch_weights needs one weight for each of views.patch_sizes")
        if self.patch_weights and (min(self.patch_weights) < 0 or sum(self.patch_weights) <= 0):
            raise ValueError(f"views.patch_weights={self.patch_weights} must be >= 0 with a positive sum")
        if not 0 < self.crop <= 1:
            raise ValueError(f"views.crop={self.crop} must lie in (0, 1]")
        if self.crop_aspect < 1:
            raise ValueError(f"views.crop_aspect={self.crop_aspect} must be at least 1")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"views.flip={self.flip} must lie in [0, 1]")
        if self.budget is not None:
            try:
                budget_shares(self)
            except ValueError as error:
                raise ValueError(f"views.budget: {error}") from None


def draw_view(
    rng: Random,
    native: tuple[int, int],
    config: ViewsConfig,
    max_tokens: int | None = None,
) -> View:
    """A training view of an image of `native` (height, width) pixels.

    A view longer than `max_tokens` is shown at a lower resolution instead; None leaves it as drawn.
    """
    box = draw_box(rng, native, config.crop, config.crop_aspect)
    flip = rng.random() < config.flip
    resolution = draw_resolution(rng, config.resolution)
    patch_size = rng.choices(config.patch_sizes, config.patch_weights or None)[0]
    if config.budget is not None:
        resolution = draw_within_budget(rng, config, patch_size)
    if not config.resolution.upscale:
        resolution = min(resolution, math.sqrt(box[2] * box[3]))
    rows, cols = fit_grid(box[2], box[3], resolution, patch_size)
    share = token_share(rows * cols, config) if config.drop.kind == "resolution" else 0.0
    rate = draw_rate(rng, config.drop, share)
    num_tokens = kept_tokens(rows * cols, rate)
    if max_tokens is not None and num_tokens > max_tokens:
        rows, cols = shrink_grid(rows, cols, max(max_tokens, int(max_tokens / (1 - rate))))
        num_tokens = min(max_tokens, kept_tokens(rows * cols, rate))
    return View(rows, cols, patch_size, num_tokens, box, flip)


def full_view(native: tuple[int, int], patch_size: int, resolution: float | None = None) -> View:
    """The evaluation view: whole image, nothing dropped; `resolution` None keeps the native area."""
    height, width = native
    rows, cols = fit_grid(height, width, resolution or math.sqrt(height * width), patch_size)
    return View(rows, cols, patch_size, rows * cols, (0, 0, height, width))


def reshow(view: View, patch_size: int, resolution: float) -> View:
    """The same crop and flip at another patch size and resolution, nothing dropped."""
    rows, cols = fit_grid(view.box[2], view.box[3], resolution, patch_size)
    return View(rows, cols, patch_size, rows * cols, view.box, view.flip)


def draw_resolution(rng: Random, config: ResolutionConfig) -> float:
    """Side in pixels. NaViT 3.2, A.1."""
    if config.distribution == "uniform":
        u = rng.uniform(-1, 1)
    else:
        u = rng.gauss(config.mean, config.std)
        while not -1 <= u <= 1:
            u = rng.gauss(config.mean, config.std)
    return side((u + 1) / 2, config)


def side(share: float, config: ResolutionConfig) -> float:
    """Pixels of the side at a share, 0..1, of the range."""
    if config.measure == "side":
        return config.low + share * (config.high - config.low)
    return math.sqrt(config.low**2 + share * (config.high**2 - config.low**2))


def draw_within_budget(rng: Random, config: ViewsConfig, patch_size: int) -> float:
    """Side in pixels, so that views have `config.budget` tokens on average."""
    place = bisect_right(budget_shares(config)[patch_size], rng.random(), hi=BUDGET_STEPS - 1)
    return side((place + rng.random()) / BUDGET_STEPS, config.resolution)


@lru_cache(maxsize=16)
def budget_shares(config: ViewsConfig) -> dict[int, list[float]]:
    """Cumulative probability of each of `BUDGET_STEPS` equal parts of the resolutions' range, by patch size.

    Raises:
        ValueError: the budget is out of reach.
    """
    resolution, drop = config.resolution, config.drop
    shares = (np.arange(BUDGET_STEPS) + 0.5) / BUDGET_STEPS
    sides = np.array([side(share, resolution) for share in shares])
    base = np.ones(BUDGET_STEPS)
    if resolution.distribution == "normal":
        base = np.exp(-(((2 * shares - 1 - resolution.mean) / resolution.std) ** 2) / 2)
    # Square views; others have as many tokens within the rounding of their sides.
    patches = np.maximum(1, np.rint(sides / np.array(config.patch_sizes)[:, None])) ** 2  # [P, K]
    kept = np.maximum(1, patches * (1 - mean_rate(drop, token_share(patches, config))))
    weights = np.array(config.patch_weights or [1] * len(config.patch_sizes), float)
    assert config.budget is not None
    tilted = tilt(base, kept, weights, config.budget)
    return dict(zip(config.patch_sizes, tilted.cumsum(1).tolist(), strict=True))


def token_share(tokens: Any, config: ViewsConfig) -> Any:
    """Where numbers of tokens lie, in 0..1, between the fewest and the most that the config can draw."""
    fewest = (config.resolution.low / max(config.patch_sizes)) ** 2
    most = (config.resolution.high / min(config.patch_sizes)) ** 2
    return np.clip((tokens - fewest) / max(most - fewest, 1e-9), 0, 1)


def mean_rate(config: DropConfig, share: Any) -> Any:
    """Expected drop rate of views with this `token_share`."""
    if config.kind == "resolution":
        return config.minimum + share * (config.maximum - config.minimum)
    return 0.0 if config.kind == "none" else config.mean


def draw_rate(rng: Random, config: DropConfig, share: float = 0.0) -> float:
    """Drop rate in [0, 1) of a view with this `token_share`. NaViT A.4, A.5."""
    if config.kind in ("none", "constant"):
        return mean_rate(config, share)
    if config.kind == "resolution":
        offset = rng.gauss(0, RATE_DEVIATION)
        while abs(offset) > 2 * RATE_DEVIATION:
            offset = rng.gauss(0, RATE_DEVIATION)
        return min(LARGEST_RATE, max(0.0, float(mean_rate(config, share)) + offset))
    m = config.mean / config.maximum
    # Variance 0.3 m (1 - m) means a + b = 1 / 0.3 - 1 = 7 / 3.
    return min(LARGEST_RATE, config.maximum * rng.betavariate(m * 7 / 3, (1 - m) * 7 / 3))


def draw_box(
    rng: Random, native: tuple[int, int], smallest: float, aspect: float = 1.0
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of at least `smallest` of the image's area.

    Its aspect ratio differs from the image's by a factor of at most `aspect`, less where a larger crop would
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


def kept_tokens(num_patches: int, rate: float) -> int:
    """Tokens left of `num_patches` at drop rate `rate`; at least one (NaViT A.4)."""
    return max(1, round(num_patches * (1 - rate)))
