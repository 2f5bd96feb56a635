"""The corruptions of ImageNet-C: 15 kinds, 5 strengths (Hendrycks and Dietterich, arXiv 1903.12261).

They are implemented from their definitions, with the published strengths. The published set differs in that
its images were cropped to squares before and stored as JPEGs afterwards, that its frost is photographed and
not drawn, and that its glass blur copies pixels although it was meant to exchange them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from packvit.data.samples.corruptions import blur, digital, noise, weather
from packvit.packing import derive_seed

SIDE = 224  # pixels: strengths are meant for images of this side
STRENGTHS = (1, 2, 3, 4, 5)

Corrupt = Callable[..., np.ndarray]

# By kind: what is done, and with which numbers at each strength.
KINDS: dict[str, tuple[Corrupt, tuple[tuple[Any, ...], ...]]] = {
    "gaussian_noise": (noise.gaussian_noise, ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))),
    "shot_noise": (noise.shot_noise, ((60,), (25,), (12,), (5,), (3,))),
    "impulse_noise": (noise.impulse_noise, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    "defocus_blur": (blur.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": (blur.glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": (blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (blur.zoom_blur, ((1.1, 0.01), (1.15, 0.01), (1.2, 0.02), (1.24, 0.02), (1.3, 0.03))),
    "snow": (
        weather.snow,
        (
            ((0.1, 0.3), (3, 0.5), (10, 4), 0.8),
            ((0.2, 0.3), (2, 0.5), (12, 4), 0.7),
            ((0.55, 0.3), (4, 0.9), (12, 8), 0.7),
            ((0.55, 0.3), (4.5, 0.85), (12, 8), 0.65),
            ((0.55, 0.3), (2.5, 0.85), (12, 12), 0.55),
        ),
    ),
    "frost": (weather.frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": (weather.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (digital.brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "contrast": (digital.contrast, ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    # The published numbers are shares of 244 pixels.
    "elastic_transform": (
        digital.elastic_transform,
        (
            (488, 170.8, 24.4),
            (488, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ),
    ),
    "pixelate": (digital.pixelate, ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    "jpeg_compression": (digital.jpeg_compression, ((25,), (18,), (15,), (10,), (7,))),
}


def corrupt(image: np.ndarray, kind: str, strength: int, seed: int) -> np.ndarray:
    """The image corrupted: uint8 [H, W, 3], of the same shape.

    Args:
        image: uint8 [H, W, 3], of about SIDE x SIDE pixels in area; see `bring_to_area`.
        kind: one of KINDS.
        strength: 1..5.
        seed: seed of everything random.
    """
    change, numbers = KINDS[kind]
    rng = np.random.default_rng(seed)
    changed = change(image.astype(np.float32) / 255, rng, *numbers[strength - 1])
    return (changed * 255).round().clip(0, 255).astype(np.uint8)


def bring_to_area(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The image resized to an area of side x side pixels, its aspect ratio kept: uint8 [h, w, 3]."""
    height, width = image.shape[:2]
    scale = side / math.sqrt(height * width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Corruption:
    """One kind at one strength, always the same for an image.

    Args:
        kind: one of KINDS.
        strength: 1..5.

    Raises:
        ValueError: there is no such kind or strength.
    """

    kind: str
    strength: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is not a corruption: it is one of {', '.join(KINDS)}")
        if self.strength not in STRENGTHS:
            raise ValueError(f"corruption {self.kind}: strength {self.strength} is not one of 1, 2, 3, 4, 5")

    @property
    def name(self) -> str:
        """The name of the corrupted set in results, such as fog-3."""
        return f"{self.kind}-{self.strength}"

    def __call__(self, pixels: np.ndarray, key: str) -> np.ndarray:
        """An image of any size, brought to an area of SIDE x SIDE pixels and corrupted.

        Args:
            pixels: uint8 [H, W, 3], the whole image.
            key: of the sample, from which all that is random follows.
        """
        seed = derive_seed("corrupt", self.kind, self.strength, key)
        return corrupt(bring_to_area(pixels), self.kind, self.strength, seed)

    @classmethod
    def parse(cls, text: str) -> "Corruption":
        """The corruption that a text such as fog:3 names.

        Raises:
            ValueError: it does not name one.
        """
        kind, _, strength = text.partition(":")
        if strength not in map(str, STRENGTHS):
            raise ValueError(f"corruption {text!r} is not of the form KIND:STRENGTH, such as fog:3")
        return cls(kind, int(strength))


def parse_corruptions(texts: Sequence[str]) -> list[Corruption]:
    """Every corruption named, once: `all`, a kind with all its strengths such as fog, or fog:3.

    Raises:
        ValueError: a text does not name one.
    """
    found: list[Corruption] = []
    for text in texts:
        if ":" in text:
            found.append(Corruption.parse(text))
        elif text == "all":
            found += every_corruption()
        else:
            found += [Corruption(text, strength) for strength in STRENGTHS]
    return list(dict.fromkeys(found))


def every_corruption() -> list[Corruption]:
    """All kinds at all strengths."""
    return [Corruption(kind, strength) for kind in KINDS for strength in STRENGTHS]
