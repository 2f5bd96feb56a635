"""Changes of colour: jitter and the operations of RandAugment that move no pixel (arXiv 1909.13719, 3).

What is done to an image follows from (seed, epoch, key) and is the same in all its views, so a teacher sees
the colours that the student sees. Operations that shear, turn or shift are left out: crops do that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from packvit.data.samples.sample import Decoded
from packvit.packing import derive_seed

LARGEST_MAGNITUDE = 10.0  # RandAugment's scale
MOST_ENHANCED = 0.9  # of RandAugment: factors lie between 0.1 and 1.9

Operation = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class AugmentConfig:
    """How colours are changed in training; nothing is by default.

    Args:
        brightness: x; multiplied by a factor from U(1 - x, 1 + x), at least 0.
        contrast: in the same way.
        saturation: in the same way.
        hue: x; the hue is moved by a share of its circle from U(-x, x); at most 0.5.
        randaugment_ops: operations of RandAugment, after the jitter; 0 has none.
        randaugment_magnitude: their strength, 0..10.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: float = 9.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "randaugment_ops"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"data.augment.{name}={getattr(self, name)} must be finite and not negative")
        for name, most in (("hue", 0.5), ("randaugment_magnitude", LARGEST_MAGNITUDE)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"data.augment.{name}={getattr(self, name)} must lie in [0, {most:g}]")

    @property
    def active(self) -> bool:
        """Whether any colour is changed."""
        return self != AugmentConfig(randaugment_magnitude=self.randaugment_magnitude)


def augment(sample: Decoded, config: AugmentConfig) -> Decoded:
    """The sample with the same operations on the pixels of each of its views."""
    operations = draw_operations(Random(derive_seed(sample.seed, "augment")), config)
    return replace(sample, pixels=[apply(pixels, operations) for pixels in sample.pixels])


def apply(pixels: np.ndarray, operations: Sequence[Operation]) -> np.ndarray:
    """uint8 [H, W, 3] after the operations, one after the other."""
    if not operations:
        return pixels
    image = Image.fromarray(pixels)
    for operation in operations:
        image = operation(image)
    return np.asarray(image)


def draw_operations(rng: Random, config: AugmentConfig) -> list[Operation]:
    """The jitter, in any order, then RandAugment's."""
    jitter = [
        _enhance_by(enhancer, rng.uniform(max(0, 1 - most), 1 + most))
        for enhancer, most in (
            (ImageEnhance.Brightness, config.brightness),
            (ImageEnhance.Contrast, config.contrast),
            (ImageEnhance.Color, config.saturation),
        )
        if most
    ]
    if config.hue:
        jitter.append(_move_hue(rng.uniform(-config.hue, config.hue)))
    rng.shuffle(jitter)
    strength = config.randaugment_magnitude / LARGEST_MAGNITUDE
    drawn = [(rng.choice(RANDAUGMENT), rng.choice((-1, 1))) for _ in range(config.randaugment_ops)]
    return jitter + [partial(change, strength=strength, sign=sign) for change, sign in drawn]


def _enhance_by(enhancer: Callable, factor: float) -> Operation:
    return lambda image: enhancer(image).enhance(factor)


def _move_hue(share: float) -> Operation:
    def move(image: Image.Image) -> Image.Image:
        hue, saturation, value = image.convert("HSV").split()
        moved = hue.point([(level + round(share * 256)) % 256 for level in range(256)])
        return Image.merge("HSV", (moved, saturation, value)).convert("RGB")

    return move


def _enhance_randomly(enhancer: Callable) -> Callable[..., Image.Image]:
    return lambda image, strength, sign: enhancer(image).enhance(1 + sign * MOST_ENHANCED * strength)


# RandAugment's operations on colours, by a strength in 0..1 and a sign. Ranges as in its paper's code.
RANDAUGMENT: tuple[Callable[..., Image.Image], ...] = (
    lambda image, strength, sign: image,
    lambda image, strength, sign: ImageOps.autocontrast(image),
    lambda image, strength, sign: ImageOps.equalize(image),
    lambda image, strength, sign: ImageOps.solarize(image, round(256 * (1 - strength))),
    lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)),
    _enhance_randomly(ImageEnhance.Color),
    _enhance_randomly(ImageEnhance.Contrast),
    _enhance_randomly(ImageEnhance.Brightness),
    _enhance_randomly(ImageEnhance.Sharpness),
)
