"""From an encoded file to the pixels of a view, decoding no more than the view needs.

A JPEG is decoded at the smallest DCT scale that still covers the view, with simplejpeg when it is installed
and with Pillow's draft mode otherwise. Sizes and boxes are upright: EXIF orientation is applied.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from packvit.packing import View

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MAX_PIXELS = 2**27  # 134 megapixels; a larger image is taken for a decompression bomb
ORIENTATION = 0x0112  # EXIF tag; 5..8 swap height and width


def native_size_of(data: bytes) -> tuple[int, int]:
    """Height and width of an upright image, from its header; `data` may be cut off behind the header.

    Raises:
        ValueError: no image that can be read, or more than `MAX_PIXELS`.
    """
    with _open(data) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def decode(data: bytes, view: View, native_size: tuple[int, int]) -> np.ndarray:
    """The pixels of a view: uint8 [view.height, view.width, 3].

    Crops the view's box, resizes with an antialiased bicubic filter, mirrors. A view of the whole image at
    its own size passes the decoded pixels on unchanged. Grey, palette and CMYK images become RGB as Pillow
    converts them, 16-bit grey keeps its high byte, and alpha is dropped, as common loaders do.

    Args:
        data: the whole file.
        native_size: (height, width) as `native_size_of` gives it; the view's box lies inside.

    Raises:
        ValueError: the file is broken, or is of another size than its header said.
    """
    top, left, height, width = view.box
    # The whole image's size at which the box is just as large as the view.
    needed = (
        math.ceil(native_size[0] * view.height / height),
        math.ceil(native_size[1] * view.width / width),
    )
    image = _decode_whole(data, needed)
    scale_y, scale_x = image.height / native_size[0], image.width / native_size[1]
    box = (left * scale_x, top * scale_y, (left + width) * scale_x, (top + height) * scale_y)
    image = image.resize((view.width, view.height), Image.Resampling.BICUBIC, box)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def _decode_whole(data: bytes, needed: tuple[int, int]) -> Image.Image:
    """The upright RGB image; a JPEG at the smallest scale not below `needed` (height, width)."""
    with _open(data) as image:
        orientation = _orientation(image)
        if image.format == "JPEG" and orientation == 1 and image.mode in ("L", "RGB") and simplejpeg:
            return Image.fromarray(
                simplejpeg.decode_jpeg(data, "RGB", min_height=needed[0], min_width=needed[1])
            )
        if image.format == "JPEG":
            height, width = needed[::-1] if orientation >= 5 else needed
            image.draft(None, (width, height))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image) if orientation != 1 else image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8 instead of scaling them.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ORIENTATION, 1)) if "exif" in image.info else 1


@contextmanager
def _open(data: bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata; the limit here is our own.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
                yield image
    except ValueError:
        raise
    except Exception as error:
        # Decoders of broken files raise nearly anything; whatever it is, the file is to blame.
        reason = str(error).split(" <_io")[0]
        raise ValueError(f"it cannot be decoded ({type(error).__name__}: {reason})") from error
