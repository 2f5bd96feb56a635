"""Mixup and cutmix between the images of a batch, whatever their sizes (arXiv 1710.09412, 1905.04899).

An image's partner is another image of its batch, resized to the image's view, before either is cut into
patches. Who is mixed with whom, and how much, follows from (seed, epoch, key) and the batch. Teachers see the
same mix: the same share or, in fractions of their views, the same rectangle.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

from packvit.data.samples.sample import Decoded, Mix
from packvit.packing import PackedImage, derive_seed


@dataclass(frozen=True)
class MixConfig:
    """How the images of a batch are mixed.

    Args:
        mixup: a; with x from Beta(a, a), an image's own share is the larger of x and 1 - x. 0: no mixup.
        cutmix: a; with x from Beta(a, a), the partner's rectangle covers 1 - x of the view. 0: no cutmix.
        probability: probability that an image is mixed.
        switch: probability of cutmix if both are used.
        per: whether every image has its own share and partner, or all images of a batch have the same share
            and rectangle and the partner of each is the image before it, as in big_vision.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    per: Literal["image", "batch"] = "image"

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"data.mix.{name}={getattr(self, name)} must be finite and not negative")
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.mix.{name}={getattr(self, name)} must lie in [0, 1]")

    @property
    def active(self) -> bool:
        """Whether any image is mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def draw_mix(rng: Random, index: int, images: int, config: MixConfig) -> Mix:
    """How image `index` of `images` is mixed; not at all if it is its own partner.

    Args:
        rng: the image's generator or, for `per` batch, one in the same state for all images of a batch.
    """
    if images < 2 or rng.random() >= config.probability:
        return Mix(index)
    partner = rng.randrange(images - 1)
    partner += partner >= index
    if config.per == "batch":
        partner = (index - 1) % images
    cut = rng.random() < config.switch if config.mixup and config.cutmix else config.cutmix > 0
    share = rng.betavariate(*(2 * [config.cutmix if cut else config.mixup]))
    if not cut:
        # Both ways to name a pair are drawn, so this only lets the image with more weight give the view.
        return Mix(partner, max(share, 1 - share))
    side = (1 - share) ** 0.5
    top, left = rng.uniform(0, 1 - side), rng.uniform(0, 1 - side)
    return Mix(partner, box=(top, left, top + side, left + side))


def mix_pixels(own: np.ndarray, partner: np.ndarray, mix: Mix) -> np.ndarray:
    """Pixels uint8 [H, W, 3] of a view with those of its partner's, of any size, resized to it."""
    height, width, _ = own.shape
    top, left, bottom, right = pixel_box(mix, height, width)
    if mix.share == 1 and (top == bottom or left == right):
        return own
    if partner.shape != own.shape:
        partner = np.asarray(Image.fromarray(partner).resize((width, height), Image.Resampling.BICUBIC))
    if mix.share == 1:
        mixed = own.copy()
        mixed[top:bottom, left:right] = partner[top:bottom, left:right]
        return mixed
    share = np.float32(mix.share)
    return np.rint(own * share + partner * (1 - share)).astype(np.uint8)


def pixel_box(mix: Mix, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the partner's rectangle in pixels of a view."""
    top, left, bottom, right = mix.box
    return round(top * height), round(left * width), round(bottom * height), round(right * width)


def own_share(mix: Mix, image: PackedImage) -> float:
    """The own share of a mixed image's kept patches: of their values or, in cutmix, of their pixels."""
    (height, width), cell = image.grid, np.array(image.cell)
    top, left, bottom, right = pixel_box(mix, height * image.cell[0], width * image.cell[1])
    first = image.coords * cell  # [n, 2], the top left pixel of each kept patch
    last = first + (cell if image.extents is None else image.extents * cell)
    low, high = np.maximum(first, (top, left)), np.minimum(last, (bottom, right))
    taken = np.maximum(high - low, 0).prod(1, dtype=np.int64).sum()
    pixels = (last - first).prod(1, dtype=np.int64).sum()
    return mix.share * (1 - float(taken) / int(pixels))


def mix_samples(samples: Sequence[Decoded], config: MixConfig) -> list[Decoded]:
    """The samples of a batch with the pixels of each view mixed; targets are mixed when the views are cut."""
    mixed = []
    for index, sample in enumerate(samples):
        seed = (samples[0] if config.per == "batch" else sample).seed
        mix = draw_mix(Random(derive_seed(seed, "mix")), index, len(samples), config)
        partner = samples[mix.partner]
        pixels = [mix_pixels(*pair, mix) for pair in zip(sample.pixels, partner.pixels, strict=True)]
        mixed.append(replace(sample, pixels=pixels, mix=mix, partner=partner))
    return mixed
