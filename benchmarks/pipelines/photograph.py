"""Pictures that cost a decoder as much as photographs do."""

import io

import numpy as np
from PIL import Image

BLUR = 0.2  # cycles a pixel at which a lens keeps 1 / e of the contrast


def photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG at quality 90 and 4:2:0 with the spectrum of photographs.

    Amplitudes fall with 1 / frequency, as in natural scenes, and with the blur of a lens, without which files
    would have twice the bits per pixel that photographs have at this quality, about 2.
    """
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(fy, fx), 1 / max(width, height))
    amplitude = np.exp(-((frequency / BLUR) ** 2)) / frequency
    shape = (3, *amplitude.shape)
    spectrum = amplitude * (rng.normal(size=shape) + 1j * rng.normal(size=shape))
    pixels = np.fft.irfft2(spectrum, (height, width))
    pixels = pixels[:1] + 0.3 * pixels[1:].sum(0, keepdims=True) + 0.2 * pixels  # mostly grey, some colour
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    buffer = io.BytesIO()
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))
    picture.save(buffer, "jpeg", quality=90, subsampling=2)
    return buffer.getvalue()
