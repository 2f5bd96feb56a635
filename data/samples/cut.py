"""From pixels to kept patches: cut and drop."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, assert_never

import numpy as np

from packvit.data.samples.mix import own_share
from packvit.data.samples.sample import Decoded, Mixing
from packvit.data.samples.targets import Target
from packvit.packing import PackedImage, View, cut_patches, place_patches

DropPattern = Literal["random", "block", "importance"]
LARGEST_STRETCH = 3.0  # of a block's height to its width, or the other way round
LEAST_VARIANCE = 1.0  # in grey levels squared: flat patches keep a chance


def kept_positions(
    seed: int, view: View, pattern: DropPattern = "random", patches: np.ndarray | None = None
) -> np.ndarray:
    """Raster positions of the kept tokens, sorted: int64 [num_tokens].

    They depend only on `seed` (up to 128 bits) and, for `importance`, the pixels. For the same seed and grid,
    a smaller number of tokens is a subset of a larger one. `random` is uniform without replacement (NaViT
    3.3). `block` drops the patches nearest to a random place, in an ellipse of random aspect ratio, so that
    the hidden region is connected as in BEiT's masks (arXiv 2106.08254, 2.3). `importance` keeps patches with
    probability proportional to the variance of their pixels, one after the other without replacement.

    Args:
        patches: uint8 [rows*cols, p*p*3] for `importance`.
    """
    count = view.num_cells
    if view.num_tokens == count:
        return np.arange(count)
    rng = np.random.Generator(np.random.Philox(key=seed))
    match pattern:
        case "random":
            rank = rng.random(count)
        case "block":
            row, col = np.divmod(np.arange(count), view.grid[1])
            stretch = math.exp(rng.uniform(-1, 1) * math.log(LARGEST_STRETCH) / 2)
            up, left = rng.uniform(-0.5, view.grid[0] - 0.5), rng.uniform(-0.5, view.grid[1] - 0.5)
            rank = -np.hypot((row - up) * stretch, (col - left) / stretch)  # the farthest stays
        case "importance":
            assert patches is not None
            # The smallest of exponential waiting times with these rates is a draw in proportion to them.
            variance = patches.reshape(count, -1).var(1, dtype=np.float64)
            rank = -np.log1p(-rng.random(count)) / (variance + LEAST_VARIANCE)
        case _ as unknown:
            assert_never(unknown)
    return np.sort(rank.argsort(kind="stable")[: view.num_tokens])


def cut_image(
    pixels: np.ndarray,
    view: View,
    native_size: tuple[int, int],
    key: str = "",
    seed: int = 0,
    pattern: DropPattern = "random",
) -> PackedImage:
    """The kept patches of pixels that already have the view's size, uint8 [view.height, view.width, 3].

    Args:
        native_size, key: see PackedImage.
        seed, pattern: decide which tokens are dropped; see `kept_positions`.
    """
    patches = cut_patches(pixels, view.patch_size, view.stride)
    kept = kept_positions(seed, view, pattern, patches)
    if view.num_tokens < len(patches):
        patches = patches[kept]
    return place_patches(patches, kept, view, native_size, key)


def cut_views(
    sample: Decoded, kinds: Mapping[str, Target], pattern: DropPattern = "random"
) -> list[PackedImage]:
    """The sample as each of its views shows it, with its targets.

    Args:
        kinds: kinds of the targets, by name.
        pattern: pattern of dropping; see `kept_positions`.
    """
    images = [
        cut_image(pixels, view, sample.native_size, sample.key, sample.seed, pattern)
        for pixels, view in zip(sample.pixels, sample.views, strict=True)
    ]
    targets = sample.targets
    if sample.mix is not None and sample.partner is not None:
        # What counts for the targets is what the student sees: how much of its patches is the image's own.
        share, partner = own_share(sample.mix, images[0]), sample.partner
        targets = []
        for number, view in enumerate(sample.views):
            mixing = Mixing(sample.mix, share, view, partner.views[number])
            own, other = sample.targets[number], partner.targets[number]
            targets.append({name: kind.mix(own[name], other[name], mixing) for name, kind in kinds.items()})
    return [replace(image, targets=values) for image, values in zip(images, targets, strict=True)]
