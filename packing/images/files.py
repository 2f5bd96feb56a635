"""Files of images, and Pillow's images, as people see them: RGB and upright.

Here and not beside the shards, because a model packs the images that it is given, and models/ may import
nothing above packing/. A JPEG is decoded at the smallest DCT scale that is large enough, with simplejpeg when
it is installed and with Pillow's draft mode otherwise. Sizes are upright: EXIF orientation is applied.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

LARGEST_FILE = 2**30  # bytes; more than any image has that would be decoded
MAX_PIXELS = 2**27  # 134 megapixels; a larger image is taken for a decompression bomb
# Pillow looks at what a file holds, not at its name, and would hand others to programs such as Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF")  # as JPEG also MPO, PPM is all of PNM
# Markers of JPEG: frames in Huffman code, the first scan, and what does not matter to the size. APP1, which
# may hold the EXIF that turns the image, and APP13, whose parts Pillow reads, are not among these.
FRAMES, SCAN = (0xC0, 0xC1, 0xC2), 0xDA
APPS = {0xE0, *range(0xE2, 0xED), 0xEE, 0xEF}
TABLES = {0xC4, 0xDB, 0xDD, 0xFE} | APPS
LEAST_APP = 16  # bytes; Pillow refuses some that are shorter
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


def read_image(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it is gone, or cannot be read.
        ValueError: it is not a regular file, such as a device, which has no end, or too large for an image.
    """
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > LARGEST_FILE:
        raise ValueError(f"its {status.st_size} bytes are more than {LARGEST_FILE}")
    return path.read_bytes()


def native_size_of(data: bytes) -> tuple[int, int]:
    """Height and width of an upright image, from its header; `data` may be cut off behind the header.

    Raises:
        ValueError: no image that can be read, or more than `MAX_PIXELS`.
    """
    plain = _plain_size(data)
    if plain is not None:
        return plain
    with _open(data) as image:
        return _upright_size(image)


def decode_upright(data: bytes, native_size: tuple[int, int]) -> np.ndarray:
    """All pixels of the file: uint8 [height, width, 3], for views that must not depend on one another.

    Raises:
        ValueError: see `decode`.
    """
    image = decode_whole(data, native_size, native_size)
    return image if isinstance(image, np.ndarray) else np.array(image)


def decode_whole(
    data: bytes, needed: tuple[int, int], native_size: tuple[int, int], any_scale: bool = True
) -> np.ndarray | Image.Image:
    """The upright RGB image; a JPEG at the smallest scale not below `needed` (height, width).

    Either as an array, uint8 [height, width, 3], or as an image, as its decoder gives it: a conversion would
    copy it.

    Args:
        any_scale: allows all eighths where the decoder can; otherwise 1/8, 1/4, 1/2 and 1, for which alone
            libjpeg-turbo has vector instructions.

    Raises:
        ValueError: the file is broken, or has another size than `native_size`.
    """
    least = needed if any_scale else _halved(needed, native_size)
    is_plain = _plain_size(data) == native_size
    if is_plain and (pixels := _by_simplejpeg(data, least)) is not None:
        return pixels
    with _open(data) as image:
        if _upright_size(image) != native_size:
            found, expected = ("x".join(map(str, size)) for size in (_upright_size(image), native_size))
            raise ValueError(f"it has {found} pixels, not {expected}")
        orientation = _orientation(image)
        if image.format in ("JPEG", "MPO"):  # MPO: several pictures in a row, as some phones write
            if not is_plain and orientation == 1 and image.mode in ("L", "RGB"):
                pixels = _by_simplejpeg(data, least)
                if pixels is not None:
                    return pixels
            height, width = needed[::-1] if orientation >= 5 else needed
            image.draft(None, (width, height))
        return upright(image)


def _by_simplejpeg(data: bytes, least: tuple[int, int]) -> np.ndarray | None:
    """A JPEG at the smallest scale not below `least` (height, width); None if it cannot be decoded so.

    simplejpeg refuses flaws that Pillow overlooks; then Pillow decides, so that the same images are good with
    and without it.
    """
    if simplejpeg:
        with suppress(ValueError):
            return simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    return None


def _halved(needed: tuple[int, int], native_size: tuple[int, int]) -> tuple[int, int]:
    """The smallest of 1/8, 1/4, 1/2 and 1 times the native size not below `needed` (height, width)."""
    for share in (8, 4, 2):
        height, width = (-(-side // share) for side in native_size)
        if height >= needed[0] and width >= needed[1]:
            return height, width
    return native_size


def _plain_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a grey or colour JPEG without EXIF, in an eighth of the time that Pillow takes.

    None if the file is something else, is broken off or has any flaw in its header: then Pillow looks at it.
    """
    place, size = 2, None
    if not data.startswith(b"\xff\xd8"):
        return None
    while len(data) >= place + 10 and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker == SCAN:
            return size
        if marker in FRAMES and data[place + 4] == 8 and data[place + 9] in (1, 3):
            size = int.from_bytes(data[place + 5 : place + 7]), int.from_bytes(data[place + 7 : place + 9])
            if not 0 < size[0] * size[1] <= MAX_PIXELS:
                return None
        elif marker not in TABLES or (marker in APPS and length < LEAST_APP):
            return None
        place += 2 + length
    return None


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
    """EXIF orientation, 1..8; 1 if there is none or no such."""
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
