"""Changes of light, shape and storage: each takes float32 [H, W, 3] in 0..1 and may leave that range."""

import io

import numpy as np
from PIL import Image

from packvit.data.samples.corruptions.filters import gaussian, sample


def brightness(image: np.ndarray, rng: np.random.Generator, more: float) -> np.ndarray:
    """The value of HSV grows by `more`, at most to 1; hue and saturation stay."""
    value = image.max(2, keepdims=True)
    brighter = np.minimum(value + more, 1)
    return np.where(value > 0, image * (brighter / np.maximum(value, 1e-6)), brighter)


def contrast(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Only that share of the distance to each channel's mean is left."""
    mean = image.mean((0, 1))
    return (image - mean) * share + mean


def elastic_transform(
    image: np.ndarray, rng: np.random.Generator, amplitude: float, sigma: float, corner: float
) -> np.ndarray:
    """A random affine map, and a smooth random displacement of each pixel.

    Args:
        amplitude: of the displacement in pixels, before it is smoothed.
        sigma: of the Gaussian that smooths it, in pixels.
        corner: how far, at most, three corners of the image's central square move along each axis, in pixels.
    """
    height, width = image.shape[:2]
    shifts = [
        gaussian(rng.uniform(-1, 1, (height, width)).astype(np.float32), sigma, "symmetric", 3.0) * amplitude
        for _ in range(2)
    ]
    rows, cols = np.mgrid[:height, :width] + np.stack(shifts)
    centre, half = np.array([height // 2, width // 2]), min(height, width) // 3
    corners = centre + half * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-corner, corner, (3, 2))
    # [row, col, 1] of a moved point times this is where the point came from.
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    return sample(image, *(rows * back[0, axis] + cols * back[1, axis] + back[2, axis] for axis in (0, 1)))


def pixelate(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Shrink to that share of the pixels of each side, and enlarge again."""
    height, width = image.shape[:2]
    small = max(1, int(width * share)), max(1, int(height * share))
    pixels = to_pixels(image).resize(small, Image.Resampling.BOX)
    return np.asarray(pixels.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def jpeg_compression(image: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    """Store as a JPEG of that quality, 1..95."""
    file = io.BytesIO()
    to_pixels(image).save(file, "JPEG", quality=quality)
    with Image.open(file) as stored:
        return np.asarray(stored, np.float32) / 255


def to_pixels(image: np.ndarray) -> Image.Image:
    """The image with 8 bits a value."""
    return Image.fromarray((image * 255).round().clip(0, 255).astype(np.uint8))
