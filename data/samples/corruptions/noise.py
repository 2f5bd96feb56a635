"""Noise of the sensor: each takes float32 [H, W, 3] in 0..1 and may leave that range."""

import numpy as np


def gaussian_noise(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Normal noise of standard deviation `sigma` on each value."""
    return image + rng.normal(scale=sigma, size=image.shape)


def shot_noise(image: np.ndarray, rng: np.random.Generator, photons: float) -> np.ndarray:
    """Poisson noise: a value of 1 is so many photons on average."""
    return rng.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """That share of all values is replaced by 0 or 1."""
    replaced = rng.random(image.shape) < share
    return np.where(replaced, rng.random(image.shape) < 0.5, image)
