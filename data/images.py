"""Pack images that are already in memory, to look at them with a model."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from packvit.data.samples.cut import cut_image
from packvit.packing import PackedBatch, full_view, pack_in_order


def pack_images(
    images: Sequence[np.ndarray],
    patch_size: int | Sequence[int] = 16,
    resolution: float | Sequence[float] | None = None,
    seq_len: int | None = None,
) -> PackedBatch:
    """Whole images, nothing dropped, as one batch whose image i is `images[i]`.

    Args:
        images: uint8 [H, W, 3], each of its own size.
        patch_size: pixels, one for all or one for each image.
        resolution: side in pixels of the square with the view's area, one for all or one for each; None keeps
            the native size, and an image whose sides the patch size divides passes bit-exact. Any other is
            resized to the nearest grid with an antialiased bicubic filter.
        seq_len: slots in a sequence; None makes one sequence, just long enough for all images: no padding.

    Raises:
        ValueError: an image of another type or shape, or longer than `seq_len`; names its place.
    """
    patch_sizes = _one_each(patch_size, len(images), "patch_size")
    resolutions = _one_each(resolution, len(images), "resolution")
    packed, lengths = [], []
    for index, (image, p, r) in enumerate(zip(images, patch_sizes, resolutions, strict=True)):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise ValueError(f"images[{index}] must be a uint8 array, not {_describe(image)}")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"images[{index}] must have shape [H, W, 3], not {list(image.shape)}")
        if not _is_number(p) or not (p >= 1 and p % 1 == 0):
            raise ValueError(f"images[{index}]: patch_size={p!r} must be a positive whole number")
        if r is not None and not (_is_number(r) and 0 < r < math.inf):
            raise ValueError(f"images[{index}]: resolution={r!r} must be a positive number")
        native = image.shape[:2]
        view = full_view(native, int(p), r)
        if native != (view.height, view.width):
            resized = Image.fromarray(image).resize((view.width, view.height), Image.Resampling.BICUBIC)
            image = np.asarray(resized)
        packed.append(cut_image(image, view, native, str(index)))
        lengths.append(view.num_tokens)
    if not packed:
        raise ValueError("images is empty: there is nothing to pack")
    if seq_len is None:
        return PackedBatch.build([packed], sum(lengths))
    if max(lengths) > seq_len:
        index = next(i for i, length in enumerate(lengths) if length > seq_len)
        raise ValueError(f"images[{index}] has {lengths[index]} tokens, seq_len={seq_len} holds fewer")
    return pack_in_order(packed, seq_len)


def _one_each(value: float | Sequence | None, count: int, name: str) -> list:
    if value is None or isinstance(value, str | int | float | np.number):
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values for {count} images")
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number)


def _describe(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
