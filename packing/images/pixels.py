"""Images of any kind in one form: RGB and upright, 8 bits a channel."""

import os
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from packvit.packing.images.files import decode_upright, native_size_of, read_image, upright

Source = np.ndarray | Tensor | Image.Image | str | os.PathLike[str] | bytes
KINDS = "an array [H, W, 3], a tensor [3, H, W], a PIL image, a path or the bytes of a file"
CHANNELS = (1, 3, 4)

# Pillow reads the pixels of an opened file when they are first used, which two threads must not do at once.
_loading = threading.Lock()


def check_list(images: object) -> None:
    """Refuse a single image in place of a list, because each row of an array would become an image.

    Raises:
        ValueError: it is one image, or not a collection at all.
    """
    one = isinstance(images, Image.Image | str | os.PathLike | bytes)
    if (
        one
        or (isinstance(images, np.ndarray | Tensor) and images.ndim != 4)
        or not hasattr(images, "__iter__")
    ):
        raise ValueError("images must be a list, also of a single image")


def check_source(source: object, place: str) -> None:
    """Refuse values that are not images; files are checked when they are read.

    Args:
        place: the name of the image for the message.

    Raises:
        ValueError: it is not one of `Source`, or an array or a tensor of another type or shape.
    """
    if isinstance(source, np.ndarray | Tensor):
        tensor = isinstance(source, Tensor)
        kind = "tensor" if tensor else "array"
        real = source.is_floating_point() if isinstance(source, Tensor) else source.dtype.kind == "f"
        if not real and source.dtype not in (np.uint8, torch.uint8):
            raise ValueError(
                f"{place} must be a uint8 {kind}, or one of floats in 0..1, not {source.dtype!s}"
            )
        shape = tuple(source.shape)
        channels = 1 if len(shape) == 2 else shape[0 if tensor else -1] if len(shape) == 3 else None
        if channels not in CHANNELS or 0 in shape:
            wanted = "[3, H, W], as torchvision's are" if tensor else "[H, W, 3]"
            raise ValueError(
                f"{place} must have the shape {wanted}, or 1 or 4 channels, or [H, W], not {list(shape)}"
            )
    elif not isinstance(source, Image.Image | str | os.PathLike | bytes):
        raise ValueError(f"{place} must be {KINDS}, not {type(source).__name__}")


def to_rgb(source: Source) -> Image.Image:
    """All pixels of an image, RGB and upright.

    Grey becomes RGB, 16-bit grey keeps its high byte, and alpha is dropped, as the loader does. Floats are
    rounded to the nearest of 256 steps. Files and PIL images are turned upright according to EXIF.

    Args:
        source: one that `check_source` accepts.

    Raises:
        OSError: a file cannot be read.
        ValueError: it cannot be decoded, or has floats outside 0..1.
    """
    if isinstance(source, Image.Image):
        try:
            with _loading:
                return upright(source)
        except Exception as error:  # decoders of broken files raise nearly anything
            raise ValueError(f"it cannot be decoded ({type(error).__name__}: {error})") from error
    if isinstance(source, np.ndarray | Tensor):
        return Image.fromarray(_to_uint8(source)).convert("RGB")
    data = source if isinstance(source, bytes) else read_image(Path(source))
    return Image.fromarray(decode_upright(data, native_size_of(data)))


def _to_uint8(source: np.ndarray | Tensor) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]."""
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = source.movedim(0, -1) if source.ndim == 3 else source
        source = (source.float() if source.is_floating_point() else source).numpy()
    if source.ndim == 3:
        source = source[:, :, 0] if source.shape[2] == 1 else source[:, :, :3]
    if source.dtype != np.uint8:
        low, high = float(source.min()), float(source.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"its floats lie in {low:.3g}..{high:.3g}, not in 0..1: undo a normalisation, or give uint8"
            )
        source = np.rint(source * 255).astype(np.uint8)
    return np.ascontiguousarray(source)
