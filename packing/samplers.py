"""Draw a view: resolution, patch size and drop rate of one image.

Every function takes its randomness as an argument; the caller derives it from (seed, epoch, sample key), so
that a view is the same however often, and in whichever process, it is drawn.
"""

import math
from bisect import bisect_right
from random import Random

from packvit.packing.budget import STEPS, budget_shares, mean_rate, side, token_share
from packvit.packing.view import View, fit_grid, shrink_grid
from packvit.packing.views_config import DropConfig, ResolutionConfig, ViewsConfig, views_at

RATE_DEVIATION = 0.02  # of rates that depend on the resolution; NaViT A.5
LARGEST_RATE = 0.999  # one token stays anyway


def draw_view(
    rng: Random,
    native: tuple[int, int],
    config: ViewsConfig,
    max_tokens: int | None = None,
    images: float = 0,
) -> View:
    """A training view of an image of `native` (height, width) pixels.

    Args:
        max_tokens: a longer view is shown at a lower resolution instead; None leaves it as drawn.
        images: seen by all ranks until now; curricula and schedules look at it.
    """
    config = views_at(config, images)
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
    shrunk = False
    if max_tokens is not None and num_tokens > max_tokens:
        shrunk = True
        rows, cols = shrink_grid(rows, cols, max(max_tokens, int(max_tokens / (1 - rate))))
        num_tokens = min(max_tokens, kept_tokens(rows * cols, rate))
    return View(rows, cols, patch_size, num_tokens, box, flip, shrunk)


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
    if config.sides:
        return rng.choices(config.sides, config.weights or None)[0]
    if config.distribution == "uniform":
        u = rng.uniform(-1, 1)
    else:
        u = rng.gauss(config.mean, config.std)
        while not -1 <= u <= 1:
            u = rng.gauss(config.mean, config.std)
    return side((u + 1) / 2, config)


def draw_within_budget(rng: Random, config: ViewsConfig, patch_size: int) -> float:
    """Side in pixels, so that views have `config.budget` tokens on average."""
    shares = budget_shares(config)[patch_size]
    place = bisect_right(shares, rng.random(), hi=len(shares) - 1)
    if config.resolution.sides:
        return config.resolution.sides[place]
    return side((place + rng.random()) / STEPS, config.resolution)


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
