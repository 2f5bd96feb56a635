"""Blur by lenses, glass and movement: each takes and returns float32 [H, W, 3] in 0..1."""

import numpy as np

from packvit.data.samples.corruptions.filters import convolve, gaussian, motion, zoom


def defocus_blur(image: np.ndarray, rng: np.random.Generator, radius: int, softness: float) -> np.ndarray:
    """Each point becomes a disc.

    Args:
        radius: of the disc in pixels.
        softness: standard deviation in pixels by which the disc's edge is blurred.
    """
    side = np.arange(-radius - 2, radius + 3)
    disc = (side**2 + side[:, None] ** 2 <= radius**2).astype(np.float32)
    return convolve(image, gaussian(disc / disc.sum(), softness))


def glass_blur(
    image: np.ndarray, rng: np.random.Generator, sigma: float, reach: int, rounds: int
) -> np.ndarray:
    """Pixels change places with near ones, between two Gaussian blurs.

    Args:
        sigma: of both blurs, in pixels.
        reach: how far a pixel moves at once along each axis, in pixels: -reach..reach-1.
        rounds: how often all pixels but those at the edges are exchanged.
    """
    height, width = image.shape[:2]
    rows, cols = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    here = (rows[:, None] * width + cols).ravel()
    # Exchanges follow one another, so that a pixel may go far; on a list of places that is quick.
    source = list(range(height * width))
    for _ in range(rounds):
        down, right = rng.integers(-reach, reach, (2, len(here)))
        there = here + down * width + right
        for one, other in zip(here.tolist(), there.tolist(), strict=True):
            source[one], source[other] = source[other], source[one]
    blurred = gaussian(image, sigma).reshape(-1, 3)
    return gaussian(blurred[source].reshape(image.shape), sigma)


def motion_blur(image: np.ndarray, rng: np.random.Generator, radius: float, sigma: float) -> np.ndarray:
    """The camera moved, within 45 degrees of the horizontal; see `motion`."""
    return motion(image, radius, sigma, rng.uniform(-45, 45))


def zoom_blur(image: np.ndarray, rng: np.random.Generator, last: float, step: float) -> np.ndarray:
    """The camera came nearer: the mean of the image and its zooms by 1, 1 + step, ... up to `last`."""
    factors = np.arange(1, last + step / 2, step)
    return (image + sum(zoom(image, factor) for factor in factors)) / (len(factors) + 1)
