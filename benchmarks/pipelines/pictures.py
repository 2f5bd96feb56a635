"""From a JPEG's bytes to pixels at a drawn size, by each decoder that users of Python loaders have."""

import io
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from pipelines.pack import draw_size

RNG = Random(0)


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return _resize(image.convert("RGB"), *draw_size(RNG, image.height, image.width))


def pillow_draft(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        height, width = draw_size(RNG, image.height, image.width)
        image.draft("RGB", (width, height))
        return _resize(image.convert("RGB"), height, width)


def simplejpeg(data: bytes) -> np.ndarray:
    return _resize(*_decode_scaled(data))


def simplejpeg_torch(data: bytes) -> np.ndarray:
    image, height, width = _decode_scaled(data)
    # With these strides torch takes the channels for the innermost axis and need not move them.
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    small = interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def torchvision(data: bytes) -> np.ndarray:
    pixels = _library("torchvision.io").decode_jpeg(_tensor(data))
    return _resize_tensor(pixels, *draw_size(RNG, *pixels.shape[1:]))


def torchcodec(data: bytes) -> np.ndarray:
    pixels = _library("torchcodec.decoders").decode_jpeg(_tensor(data))
    return _resize_tensor(pixels, *draw_size(RNG, *pixels.shape[1:]))


class Decoder(NamedTuple):
    """How pictures are decoded and resized.

    show: returns uint8 [height, width, 3] in whole patches.
    words: what it does, for the page.
    module: what it needs beyond Pillow and torch.
    """

    show: Callable[[bytes], np.ndarray]
    words: str
    module: str = "PIL"


# "Scaled" means decoded at the smallest DCT scale that covers the picture. torch has a kernel for uint8.
DECODERS = {
    "pillow": Decoder(pillow, "Pillow"),
    "draft": Decoder(pillow_draft, "Pillow, scaled (draft mode)"),
    "torchvision": Decoder(torchvision, "torchvision, resized by torch", "torchvision.io"),
    "torchcodec": Decoder(torchcodec, "torchcodec, resized by torch", "torchcodec.decoders"),
    "simplejpeg": Decoder(simplejpeg, "simplejpeg, scaled, resized by Pillow", "simplejpeg"),
    "best": Decoder(simplejpeg_torch, "simplejpeg, scaled, resized by torch", "simplejpeg"),
}


def _decode_scaled(data: bytes) -> tuple[np.ndarray, int, int]:
    library = _library("simplejpeg")
    height, width = draw_size(RNG, *library.decode_jpeg_header(data)[:2])
    return library.decode_jpeg(data, "RGB", min_height=height, min_width=width), height, width


def _resize(image: Image.Image | np.ndarray, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _resize_tensor(pixels: torch.Tensor, height: int, width: int) -> np.ndarray:
    small = interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def _tensor(data: bytes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bytes cannot be written to, and nobody does
        return torch.frombuffer(data, dtype=torch.uint8)


@cache
def _library(name: str) -> Any:
    return import_module(name)
