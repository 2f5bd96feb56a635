"""Blurs, zooms and displacements of float32 images, with numpy and Pillow alone."""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

Edge = Literal["nearest", "symmetric"]


def gaussian(image: np.ndarray, sigma: float, edge: Edge = "nearest", truncate: float = 4.0) -> np.ndarray:
    """A Gaussian blur: float32 [H, W] or [H, W, C].

    Both axes are multiplied by a matrix, so that the cost does not depend on `sigma`.

    Args:
        sigma: standard deviation in pixels.
        edge: `nearest` repeats the outermost pixels, `symmetric` mirrors the image with them.
        truncate: standard deviations at which the kernel ends.
    """
    rows, cols = (_blur_matrix(size, sigma, edge, truncate) for size in image.shape[:2])
    return np.moveaxis(np.tensordot(cols, np.tensordot(rows, image, 1), (1, 1)), 0, 1)


@lru_cache(maxsize=64)
def _blur_matrix(size: int, sigma: float, edge: Edge, truncate: float) -> np.ndarray:
    """float32 [size, size]: row i holds the weights that make pixel i."""
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    places = np.arange(size)[:, None] + offsets
    places = places.clip(0, size - 1) if edge == "nearest" else mirror(places, size)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], places), weights / weights.sum())
    return matrix.astype(np.float32)


def mirror(places: np.ndarray, size: int) -> np.ndarray:
    """Map any integers to places 0..size-1, as if the image were continued by mirroring: ... 1 0 | 0 1 2
    ..."""
    places = places % (2 * size)
    return np.where(places < size, places, 2 * size - 1 - places)


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve each channel with a symmetric kernel of odd sides [K, K]; the image is mirrored at its
    edges."""
    margin = len(kernel) // 2
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "symmetric")
    shape = wide.shape[:2]
    product = np.fft.rfft2(wide, axes=(0, 1)) * np.fft.rfft2(kernel, s=shape)[..., None]
    # The transform wraps around, but only within the first 2 * margin rows and columns.
    whole = np.fft.irfft2(product, s=shape, axes=(0, 1))
    return whole[2 * margin :, 2 * margin :].astype(np.float32)


def motion(image: np.ndarray, radius: float, sigma: float, degrees: float) -> np.ndarray:
    """Blur the image in one direction by half a Gaussian along a line, like ImageMagick's motion blur.

    Args:
        image: float32 [H, W, C].
        radius: half the length of the trail in pixels.
        sigma: standard deviation of its weights in pixels.
        degrees: its direction, from right to down.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    angle = math.radians(degrees)
    down = np.rint(steps * math.sin(angle)).astype(int)
    right = np.rint(steps * math.cos(angle)).astype(int)
    margin = len(steps)
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "edge")
    height, width = image.shape[:2]
    blurred = np.zeros_like(image)
    for weight, y, x in zip(weights / weights.sum(), down, right, strict=True):
        blurred += np.float32(weight) * wide[margin + y :, margin + x :][:height, :width]
    return blurred


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the image, enlarged bilinearly to its size: float32 [H, W, C].

    Args:
        factor: at least 1.
    """
    height, width = image.shape[:2]
    top, left = (height - height / factor) / 2, (width - width / factor) / 2
    box = left, top, width - left, height - top
    channels = [
        Image.fromarray(np.ascontiguousarray(channel)).resize((width, height), Image.Resampling.BILINEAR, box)
        for channel in np.moveaxis(image, 2, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], 2)


def sample(image: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The image interpolated bilinearly at places [H, W] in pixels; it is mirrored at its edges."""
    height, width = image.shape[:2]
    top, left = np.floor(rows).astype(int), np.floor(cols).astype(int)
    down, right = (rows - top)[..., None], (cols - left)[..., None]
    top, bottom = mirror(top, height), mirror(top + 1, height)
    left, right_col = mirror(left, width), mirror(left + 1, width)
    upper = image[top, left] * (1 - right) + image[top, right_col] * right
    lower = image[bottom, left] * (1 - right) + image[bottom, right_col] * right
    return upper * (1 - down) + lower * down
