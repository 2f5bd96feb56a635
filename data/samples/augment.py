"""Colour jitter, and RandAugment (arXiv 1909.13719, 3) with the operations and ranges of big_vision's.

The operations on an image follow from (seed, epoch, key) and are the same in all its views, so a teacher sees
what the student sees. Lengths are shares of a view's sides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from packvit.data.samples.sample import Decoded
from packvit.packing import derive_seed

LARGEST_MAGNITUDE = 10.0  # RandAugment's scale
# At the largest magnitude: what is shown of big_vision's operations at its 240 pixels.
SHEAR, DEGREES, SHIFT, CUT = 0.3, 30.0, 100 / 240, 40 / 240
BRIGHTER = 110  # grey levels that solarize_add adds
GREY = (128, 128, 128)  # where an operation leaves nothing of the image

Operation = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class AugmentConfig:
    """How pixels are changed in training; by default they are not.

    Args:
        brightness: x; brightness is multiplied by a factor from U(1 - x, 1 + x), at least 0.
        contrast: likewise for contrast.
        saturation: likewise for saturation.
        hue: x; the hue is shifted by a share of its circle from U(-x, x); at most 0.5.
        randaugment_ops: number of RandAugment's operations, after the jitter; 0: none.
        randaugment_magnitude: their strength, 0..10.
        randaugment_moves: whether operations that shear, rotate, shift or cover are among them. Targets with
            positions in the image, such as boxes, do not follow these.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: float = 9.0
    randaugment_moves: bool = True

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "randaugment_ops"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"data.augment.{name}={getattr(self, name)} must be finite and not negative")
        for name, most in (("hue", 0.5), ("randaugment_magnitude", LARGEST_MAGNITUDE)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"data.augment.{name}={getattr(self, name)} must lie in [0, {most:g}]")

    @property
    def active(self) -> bool:
        """Whether any pixel is changed."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.randaugment_ops))


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
    operations = COLOURS + MOVES if config.randaugment_moves else COLOURS
    for _ in range(config.randaugment_ops):
        change, draw = rng.choice(operations), Draw(rng.choice((-1, 1)), rng.random(), rng.random())
        jitter.append(partial(change, strength=strength, draw=draw))
    return jitter


def _enhance_by(enhancer: Callable, factor: float) -> Operation:
    return lambda image: enhancer(image).enhance(factor)


def _move_hue(share: float) -> Operation:
    def move(image: Image.Image) -> Image.Image:
        hue, saturation, value = image.convert("HSV").split()
        moved = hue.point([(level + round(share * 256)) % 256 for level in range(256)])
        return Image.merge("HSV", (moved, saturation, value)).convert("RGB")

    return move


class Draw(NamedTuple):
    """The random values of an operation: a sign, and a place in fractions of height and width."""

    sign: int
    top: float
    left: float


def _enhance(enhancer: Callable) -> Callable[..., Image.Image]:
    return lambda image, strength, draw: enhancer(image).enhance(0.1 + 1.8 * strength)


def _solarize_add(image: Image.Image, strength: float, draw: Draw) -> Image.Image:
    added = int(BRIGHTER * strength)
    return image.point([min(255, level + added) if level < 128 else level for level in range(256)] * 3)


def _cut_out(image: Image.Image, strength: float, draw: Draw) -> Image.Image:
    """Cover a square around a random place, cut off at the edges (arXiv 1708.04552)."""
    y, x = int(draw.top * image.height), int(draw.left * image.width)
    half_y, half_x = (int(CUT * strength * side) for side in (image.height, image.width))
    image = image.copy()
    image.paste(GREY, (max(0, x - half_x), max(0, y - half_y), x + half_x, y + half_y))
    return image


def _move(matrix: Callable[[float, int, int], tuple[float, ...]]) -> Callable[..., Image.Image]:
    """An affine map: the matrix that gives source places, of the signed strength, width and height."""

    def move(image: Image.Image, strength: float, draw: Draw) -> Image.Image:
        size = image.width, image.height
        data = matrix(draw.sign * strength, *size)
        return image.transform(size, Image.Transform.AFFINE, data, Image.Resampling.NEAREST, fillcolor=GREY)

    return move


def _turn(image: Image.Image, strength: float, draw: Draw) -> Image.Image:
    return image.rotate(draw.sign * strength * DEGREES, Image.Resampling.NEAREST, fillcolor=GREY)


# RandAugment's operations, by a strength in 0..1.
COLOURS: tuple[Callable[..., Image.Image], ...] = (
    lambda image, strength, draw: ImageOps.autocontrast(image),
    lambda image, strength, draw: ImageOps.equalize(image),
    lambda image, strength, draw: ImageOps.invert(image),
    lambda image, strength, draw: ImageOps.posterize(image, int(4 * strength)),
    lambda image, strength, draw: ImageOps.solarize(image, int(256 * strength)),
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
)
MOVES: tuple[Callable[..., Image.Image], ...] = (
    _turn,
    _cut_out,
    _move(lambda share, width, height: (1, SHEAR * share, 0, 0, 1, 0)),
    _move(lambda share, width, height: (1, 0, 0, SHEAR * share, 1, 0)),
    _move(lambda share, width, height: (1, 0, SHIFT * share * width, 0, 1, 0)),
    _move(lambda share, width, height: (1, 0, 0, 0, 1, SHIFT * share * height)),
)
