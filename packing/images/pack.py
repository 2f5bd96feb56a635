"""Pack images that a caller has at hand."""

import math
import os
from collections.abc import Iterable, Sequence
from typing import TypeGuard

import numpy as np
from PIL import Image

from packvit.packing.batch.image import PackedImage
from packvit.packing.batch.pack import pack_in_order
from packvit.packing.batch.packed_batch import PackedBatch
from packvit.packing.images.cut import cut_whole
from packvit.packing.images.pixels import Source, check_list, check_source, to_rgb
from packvit.packing.views.view import full_view


def pack_images(
    images: Iterable[Source],
    patch_size: int | Sequence[int] = 16,
    resolution: float | Sequence[float] | None = None,
    seq_len: int | None = None,
    stride: int | Sequence[int] | None = None,
) -> PackedBatch:
    """Whole images, nothing dropped, as one batch whose image i is `images[i]`.

    Args:
        images: each of its own kind and size: arrays [H, W, 3], tensors [3, H, W], PIL images of any mode,
            paths, or the bytes of a file. Arrays and tensors are uint8, or floats in 0..1, which are rounded
            to uint8. [H, W] and one channel are grey; a fourth channel, alpha, is dropped, as in training.
            Files and PIL images are turned upright according to EXIF.
        patch_size: pixels, one value for all images or one for each.
        resolution: side in pixels of the square with the view's area, one value for all images or one for
            each; None keeps the native size. An image whose sides are multiples of the patch size is then
            passed on bit-exact; any other is resized to the nearest grid with an antialiased bicubic filter.
        seq_len: slots in a sequence; None makes one sequence, just long enough for all images, without
            padding.
        stride: pixels from one patch to the next, at most patch_size, one value for all images or one for
            each; None: patch_size. With a smaller stride patches overlap. An image that the patches cover
            exactly is passed on bit-exact.

    Raises:
        ValueError: an image that cannot be used, or is longer than `seq_len`; names its place.
    """
    check_list(images)
    images = list(images)
    patch_sizes = _one_each(patch_size, len(images), "patch_size")
    resolutions = _one_each(resolution, len(images), "resolution")
    strides = _one_each(stride, len(images), "stride")
    every = zip(images, patch_sizes, resolutions, strides, strict=True)
    packed = [_cut(*one, index) for index, one in enumerate(every)]
    if not packed:
        raise ValueError("images is empty: there is nothing to pack")
    lengths = [image.num_tokens for image in packed]
    if seq_len is None:
        return PackedBatch.build([packed], sum(lengths))
    if max(lengths) > seq_len:
        index = next(i for i, length in enumerate(lengths) if length > seq_len)
        raise ValueError(f"images[{index}] has {lengths[index]} tokens, seq_len={seq_len} holds fewer")
    return pack_in_order(packed, seq_len)


def _cut(source: Source, p: object, r: object, s: object, index: int) -> PackedImage:
    """One image at a patch size, a resolution and a stride."""
    place = f"images[{index}]"
    check_source(source, place)
    if not _is_number(p) or not (p >= 1 and p % 1 == 0):
        raise ValueError(f"{place}: patch_size={p!r} must be a positive whole number")
    if r is not None and not (_is_number(r) and 0 < r < math.inf):
        raise ValueError(f"{place}: resolution={r!r} must be a positive number")
    if s is not None and not (_is_number(s) and 1 <= s <= p and s % 1 == 0):
        raise ValueError(f"{place}: stride={s!r} must be a whole number from 1 to patch_size={p}")
    try:
        image = to_rgb(source)
    except (OSError, ValueError) as error:
        reason = f"it cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        name = f" ({os.fspath(source)})" if isinstance(source, str | os.PathLike) else ""
        raise ValueError(f"{place}{name}: {reason}") from error
    view = full_view((image.height, image.width), int(p), r, None if s is None else int(s))
    native = image.height, image.width
    if native != (view.height, view.width):
        image = image.resize((view.width, view.height), Image.Resampling.BICUBIC)
    return cut_whole(np.asarray(image), view, native, str(index))


def _one_each(value: float | Sequence | None, count: int, name: str) -> list:
    if value is None or isinstance(value, str | int | float | np.number):
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values for {count} images")
    return values


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float | np.number)
