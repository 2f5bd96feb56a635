"""Snow, frost and fog: each takes float32 [H, W, 3] in 0..1 and may leave that range."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from packvit.data.samples.corruptions.filters import gaussian, mirror, motion, zoom

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
PLASMA_SIDE = 256  # pixels after which clouds repeat; images have about 224
ICE = np.array([0.84, 0.94, 1.0], np.float32)  # the colour of frost
PANES, PANE_SIDE, FERNS = 5, 384, 75  # panes of frost, their side in pixels, ferns of ice on each
FINER = 2  # ice is drawn so many times as large, for smooth lines


def snow(
    image: np.ndarray,
    rng: np.random.Generator,
    noise: tuple[float, float],
    flake: tuple[float, float],
    blur: tuple[float, float],
    share: float,
) -> np.ndarray:
    """Falling flakes in front of a whitened picture.

    Args:
        noise: mean and standard deviation of the normal noise that flakes are made of.
        flake: by how much the noise is enlarged, and below which value it is not a flake.
        blur: radius and sigma of the flakes' motion blur, see `motion`.
        share: share of the picture that is left unchanged.
    """
    size, threshold = flake
    drawn = rng.normal(*noise, image.shape[:2]).astype(np.float32)
    flakes = zoom(drawn[..., None], size)
    flakes = np.where(flakes < threshold, 0, flakes.clip(0, 1)).astype(np.float32)
    flakes = motion(flakes, *blur, rng.uniform(-135, -45))
    grey = (image @ LUMA)[..., None]
    whiter = np.maximum(image, grey * 1.5 + 0.5)
    return share * image + (1 - share) * whiter + flakes + flakes[::-1, ::-1]


def fog(image: np.ndarray, rng: np.random.Generator, density: float, decay: float) -> np.ndarray:
    """Clouds in front of the picture.

    Args:
        density: density of the thickest cloud, in units of white.
        decay: square root of the factor by which the clouds' amplitude falls from one scale to the next
            finer.
    """
    brightest = image.max()
    cloudy = image + density * plasma(image.shape[:2], decay, rng)[..., None]
    return cloudy * brightest / (brightest + density)


def frost(image: np.ndarray, rng: np.random.Generator, clear: float, opaque: float) -> np.ndarray:
    """Frost on a pane: a weighted sum of the picture and of a random part of one of the panes."""
    ice = pane(int(rng.integers(PANES)))
    top, left = rng.integers(PANE_SIDE, size=2)
    height, width = image.shape[:2]
    rows, cols = mirror(top + np.arange(height), PANE_SIDE), mirror(left + np.arange(width), PANE_SIDE)
    return clear * image + opaque * ice[rows[:, None], cols]


def plasma(shape: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """Clouds by the diamond-square algorithm: float32 [H, W] from 0 to 1, repeating every PLASMA_SIDE pixels.

    Each new point is the mean of four around it plus uniform noise, whose amplitude falls by the square of
    `decay` from one scale to the next.
    """
    field = np.zeros((PLASMA_SIDE, PLASMA_SIDE))
    step, amplitude = PLASMA_SIDE, 1.0
    while step >= 2:
        half = step // 2

        def noise(amplitude: float = amplitude, count: int = PLASMA_SIDE // step) -> np.ndarray:
            return rng.uniform(-amplitude, amplitude, (count, count))

        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        middles = (pairs + np.roll(pairs, -1, 1)) / 4 + noise()
        field[half::step, half::step] = middles
        beside = corners + np.roll(corners, -1, 1) + middles + np.roll(middles, 1, 0)
        below = corners + np.roll(corners, -1, 0) + middles + np.roll(middles, 1, 1)
        field[::step, half::step] = beside / 4 + noise()
        field[half::step, ::step] = below / 4 + noise()
        step, amplitude = half, amplitude / decay**2
    field = (field - field.min()) / (field.max() - field.min())
    rows, cols = (np.arange(size) % PLASMA_SIDE for size in shape)
    return field[rows[:, None], cols].astype(np.float32)


@lru_cache
def pane(number: int) -> np.ndarray:
    """A pane with ice: float32 [PANE_SIDE, PANE_SIDE, 3] in 0..1.

    The original corruption lays one of a few photographs of frosted panes over the picture. Here, ferns of
    ice grow over a haze of rime, with the 60 degrees of ice crystals between a stem and its branches.
    """
    rng = np.random.default_rng(number)
    drawn = Image.new("L", (PANE_SIDE * FINER, PANE_SIDE * FINER))
    pen = ImageDraw.Draw(drawn)
    for _ in range(FERNS):
        x, y, angle = rng.uniform(0, (drawn.width, drawn.height, 2 * math.pi))
        _draw_fern(pen, rng, (x, y), angle, rng.uniform(45, 125) * FINER, 2)
    ferns = np.asarray(drawn.resize((PANE_SIDE, PANE_SIDE), Image.Resampling.BOX), np.float32) / 255
    rime = plasma(ferns.shape, 1.5, rng)
    grey = 0.1 + 0.35 * rime + 0.45 * gaussian(ferns, 2.0) + 0.4 * ferns * (0.4 + 0.6 * rime)
    return grey.clip(0, 1)[..., None] * ICE


def _draw_fern(
    pen: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    start: tuple[float, float],
    angle: float,
    length: float,
    depth: int,
) -> None:
    """A stem in bits that bend a little, and branches to both sides, shorter towards its tip."""
    bits = max(2, int(length / (4 * FINER)))
    x, y = start
    for bit in range(bits):
        bend = angle + rng.normal(0, 0.05)
        end = x + length / bits * math.cos(bend), y + length / bits * math.sin(bend)
        pen.line([(x, y), end], fill=int(rng.integers(120, 256)), width=depth + 1)
        x, y = end
        if depth:
            left = length * (1 - bit / bits) * rng.uniform(0.2, 0.5)
            for side in (-1, 1):
                _draw_fern(pen, rng, end, angle + side * math.pi / 3, left, depth - 1)
