"""From whatever a caller calls an image to the patches of one view.

Images are decoded whole, and turned upright as EXIF says, so that what the model sees depends on the image
and the setting alone, and is what `packvit eval` shows it.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from packvit.data import (
    BadSample,
    BadShard,
    cut_image,
    decode_upright,
    native_size_of,
    read_image,
    show,
    upright,
)
from packvit.evaluate.setting import Setting
from packvit.packing import PackedImage

# A callable gives the encoded file when it is asked, as often as it is asked.
Source = np.ndarray | Image.Image | str | os.PathLike | bytes | Callable[[], bytes]
Item = TypeVar("Item")
Result = TypeVar("Result")

# Pillow reads the pixels of an opened file when they are first used, which two threads must not do at once.
_loading = threading.Lock()


def check_source(source: object, place: str) -> None:
    """Refuse what is no image at all; files are looked at when they are read.

    Args:
        place: names the image in the message.

    Raises:
        ValueError: it is none of `Source`, or an array of another type or shape.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8:
            raise ValueError(f"{place} must be a uint8 array, not {source.dtype}")
        grey = source.ndim == 2
        if not (grey or (source.ndim == 3 and source.shape[2] in (1, 3, 4))) or 0 in source.shape:
            raise ValueError(
                f"{place} must have shape [H, W], [H, W, 3] or [H, W, 4], not {list(source.shape)}"
            )
    elif not isinstance(source, Image.Image | str | os.PathLike | bytes) and not callable(source):
        raise ValueError(
            f"{place} must be a uint8 array, a PIL image, a path or the bytes of a file, "
            f"not {type(source).__name__}"
        )


def read_view(source: Source, setting: Setting) -> PackedImage | str:
    """The patches that a setting shows of an image; a sentence where the image cannot be used."""
    try:
        image = read_pixels(source)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    except (BadSample, BadShard) as error:
        return error.reason
    except ValueError as error:
        return str(error)
    native_size = image.height, image.width
    view = setting.view(native_size)
    return cut_image(show(image, view, native_size), view, native_size)


def read_pixels(source: Source) -> Image.Image:
    """All pixels of an image, RGB and upright. Alpha is dropped, and grey becomes RGB.

    Raises:
        OSError, ValueError: it cannot be read or decoded.
    """
    if isinstance(source, np.ndarray):
        source = source[:, :, 0] if source.ndim == 3 and source.shape[2] == 1 else source
        pixels = source[:, :, :3] if source.ndim == 3 else source
        return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    if isinstance(source, Image.Image):
        try:
            with _loading:
                return upright(source)
        except Exception as error:  # decoders of broken files raise nearly anything
            raise ValueError(f"it cannot be decoded ({type(error).__name__}: {error})") from error
    if isinstance(source, str | os.PathLike):
        data = read_image(Path(source))
    else:
        data = source if isinstance(source, bytes) else source()
    return Image.fromarray(decode_upright(data, native_size_of(data)))


def in_order(
    pool: Executor | None, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`function` of each item, in order; the pool works on at most `ahead` items before they are wanted.

    Args:
        pool: None computes each one when it is wanted.
    """
    if pool is None:
        yield from map(function, items)
        return
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
