"""From an encoded file to the pixels of a view, decoding no more than the view needs.

A JPEG is decoded at the smallest DCT scale that still covers the view, with simplejpeg when it is installed
and with Pillow's draft mode otherwise. Sizes and boxes are upright: EXIF orientation is applied.
"""

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from PIL import Image

from packvit.data.samples.sample import Decoded, Header, Reference
from packvit.data.samples.targets import Target
from packvit.data.shards.shard import BadSample, BadShard, Shard
from packvit.packing import View

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

HEAD_BYTES = 16 * 1024  # enough for the header of nearly every image
MAX_PIXELS = 2**27  # 134 megapixels; a larger image is taken for a decompression bomb
# Pillow looks at what a file holds, not at its name, and would hand others to programs such as Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF")  # as JPEG also MPO, PPM is all of PNM
ORIENTATION = 0x0112  # EXIF tag; 5..8 swap height and width
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_header(shard: Shard, reference: Reference) -> Header:
    """What the file says of a sample before it is decoded; raises as `read_native_size`.

    Args:
        shard: the one that `reference` names.
    """
    member = reference.member
    return Header(reference, shard.key(member), read_native_size(shard, member))


def read_native_size(shard: Shard, member: int) -> tuple[int, int]:
    """Upright height and width of a sample's image, from its header.

    Raises:
        BadSample: there is no image, or its header cannot be read.
        BadShard: the file is gone or shorter than it was.
    """
    head = shard.image(member, HEAD_BYTES)
    try:
        return native_size_of(head)
    except ValueError:
        # Some headers are long, and some formats want the whole file.
        whole = shard.image(member)
    try:
        return native_size_of(whole)
    except ValueError as error:
        raise BadSample(shard.path, shard.key(member), str(error)) from error


def decode_sample(
    shard: Shard, header: Header, views: Sequence[View], kinds: Mapping[str, Target], seed: int = 0
) -> Decoded:
    """A sample's pixels and targets in each view.

    Args:
        shard: the one that `header` was read from.
        kinds: of the targets, by name.
        seed: a function of (seed, epoch, key), for what is random from here on.

    Raises:
        BadSample: it cannot be decoded, or lacks a target.
        BadShard: the file was replaced, or is gone.
    """
    data, values = read_sample(shard, header, kinds)
    native_size = header.native_size
    try:
        values = {name: kind.draw(values[name], seed) for name, kind in kinds.items()}
        pixels = [decode(data, view, native_size) for view in views]
        targets = [
            {name: kind.follow(values[name], view, native_size) for name, kind in kinds.items()}
            for view in views
        ]
    except ValueError as error:
        raise BadSample(shard.path, header.key, str(error)) from error
    return Decoded(header.key, native_size, seed, views, pixels, targets)


def read_sample(shard: Shard, header: Header, kinds: Mapping[str, Target]) -> tuple[bytes, dict[str, Any]]:
    """A sample's encoded image, and the values of its targets by name.

    Args:
        shard: the one that `header` was read from.
        kinds: of the targets, by name.

    Raises:
        BadSample: it lacks a target.
        BadShard: the file was replaced, or is gone.
    """
    member = header.reference.member
    if shard.key(member) != header.key:
        raise BadShard(shard.path, f"it was replaced, so sample {header.key!r} is lost")
    values = {name: kind.read(shard, member) for name, kind in kinds.items()}
    return shard.image(member), values


def native_size_of(data: bytes) -> tuple[int, int]:
    """Height and width of an upright image, from its header; `data` may be cut off behind the header.

    Raises:
        ValueError: no image that can be read, or more than `MAX_PIXELS`.
    """
    with _open(data) as image:
        return _upright_size(image)


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
    height, width = view.box[2:]
    # The whole image's size at which the box is just as large as the view.
    needed = (
        math.ceil(native_size[0] * view.height / height),
        math.ceil(native_size[1] * view.width / width),
    )
    return show(_decode_whole(data, needed, native_size), view, native_size)


def decode_upright(data: bytes, native_size: tuple[int, int]) -> np.ndarray:
    """All pixels of the file: uint8 [height, width, 3], for views that must not depend on one another.

    Raises:
        ValueError: see `decode`.
    """
    return np.array(_decode_whole(data, native_size, native_size))


def show(image: Image.Image, view: View, native_size: tuple[int, int]) -> np.ndarray:
    """The pixels of a view: crop, resize, mirror; uint8 [view.height, view.width, 3].

    Args:
        image: RGB and upright, of `native_size` or smaller.
        native_size: (height, width) in which the view's box is given.
    """
    top, left, height, width = view.box
    scale_y, scale_x = image.height / native_size[0], image.width / native_size[1]
    box = (left * scale_x, top * scale_y, (left + width) * scale_x, (top + height) * scale_y)
    image = image.resize((view.width, view.height), Image.Resampling.BICUBIC, box)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def _decode_whole(data: bytes, needed: tuple[int, int], native_size: tuple[int, int]) -> Image.Image:
    """The upright RGB image; a JPEG at the smallest scale not below `needed` (height, width)."""
    with _open(data) as image:
        if _upright_size(image) != native_size:
            found, expected = ("x".join(map(str, size)) for size in (_upright_size(image), native_size))
            raise ValueError(f"it has {found} pixels, not {expected}")
        orientation = _orientation(image)
        if image.format in ("JPEG", "MPO"):  # MPO: several pictures in a row, as some phones write
            if orientation == 1 and image.mode in ("L", "RGB") and simplejpeg:
                # It refuses flaws that Pillow overlooks; then Pillow decides, so that the same images are
                # good with and without it.
                with suppress(ValueError):
                    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=needed[0], min_width=needed[1])
                    return Image.fromarray(pixels)
            height, width = needed[::-1] if orientation >= 5 else needed
            image.draft(None, (width, height))
        return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """An opened image as people see it: RGB, turned as its EXIF orientation says; see `decode`.

    Raises:
        Exception: of nearly any kind, where the file is broken.
    """
    orientation = _orientation(image)  # before it is loaded, as the header's size was taken
    image.load()
    rgb = _to_rgb(image)
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8 instead of scaling them.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1..8; 1 where there is none or no such."""
    if "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:
        return 1  # damaged metadata, which Pillow meets with nearly any exception: the pixels may be fine
    return orientation if orientation in UPRIGHT else 1


@contextmanager
def _open(data: bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd metadata; the limit here is our own.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
                yield image
    except ValueError:
        raise
    except Exception as error:
        # Decoders of broken files raise nearly anything; whatever it is, the file is to blame.
        reason = str(error).split(" <_io")[0]
        raise ValueError(f"it cannot be decoded ({type(error).__name__}: {reason})") from error
