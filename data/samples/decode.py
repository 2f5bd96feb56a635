"""From a sample's encoded file to the pixels of its views, decoding no more than a view needs.

`packvit.packing.images.files` decodes: a JPEG at the smallest scale that still covers the view, upright.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, assert_never

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from packvit.data.samples.sample import Decoded, Header, Reference
from packvit.data.samples.targets import Target
from packvit.data.shards.shard import BadSample, BadShard, Shard
from packvit.data.shards.tar_file import AHEAD
from packvit.packing import View, decode_whole, native_size_of

Resize = Literal["pillow", "torch"]  # see DataConfig
TRAINING: Resize = "torch"  # the default of training
HEAD_BYTES = 16 * 1024  # enough for the header of nearly every image


def read_header(shard: Shard, reference: Reference) -> Header:
    """What the file says about a sample before it is decoded; raises like `read_native_size`.

    Args:
        shard: the shard that `reference` names.
    """
    member = reference.member
    return Header(reference, shard.key(member), read_native_size(shard, member))


def read_native_size(shard: Shard, member: int) -> tuple[int, int]:
    """Upright height and width of a sample's image, from its header.

    Raises:
        BadSample: there is no image, or its header cannot be read.
        BadShard: the file is gone or shorter than it was.
    """
    known = shard.native_size(member)
    if known is not None:
        return known
    for size in (HEAD_BYTES,) if shard.is_local else (AHEAD // 2, HEAD_BYTES):
        head = shard.image(member, size)
        with suppress(ValueError):
            return native_size_of(head)
    # Some headers are long, and some formats want the whole file.
    whole = shard.image(member)
    try:
        return native_size_of(whole)
    except ValueError as error:
        raise BadSample(shard.path, shard.key(member), str(error)) from error


def decode_sample(
    shard: Shard,
    header: Header,
    views: Sequence[View],
    kinds: Mapping[str, Target],
    seed: int = 0,
    resize: Resize = "pillow",
) -> Decoded:
    """A sample's pixels and targets in each view.

    Args:
        shard: the shard that `header` was read from.
        kinds: kinds of the targets, by name.
        seed: a function of (seed, epoch, key), for everything random from here on.
        resize: see `show`.

    Raises:
        BadSample: it cannot be decoded, or lacks a target.
        BadShard: the file was replaced, or is gone.
    """
    data, values = read_sample(shard, header, kinds)
    native_size = header.native_size
    try:
        values = {name: kind.draw(values[name], seed) for name, kind in kinds.items()}
        pixels = [decode(data, view, native_size, resize) for view in views]
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
        shard: the shard that `header` was read from.
        kinds: kinds of the targets, by name.

    Raises:
        BadSample: it lacks a target.
        BadShard: the file was replaced, or is gone.
    """
    member = header.reference.member
    if shard.key(member) != header.key:
        raise BadShard(shard.path, f"it was replaced, so sample {header.key!r} is lost")
    values = {name: kind.read(shard, member) for name, kind in kinds.items()}
    return shard.image(member), values


def decode(data: bytes, view: View, native_size: tuple[int, int], resize: Resize = "pillow") -> np.ndarray:
    """The pixels of a view: uint8 [view.height, view.width, 3].

    Crops the view's box, resizes with an antialiased bicubic filter, mirrors. A view of the whole image at
    its own size passes the decoded pixels on unchanged. Grey, palette and CMYK images become RGB as Pillow
    converts them, 16-bit grey keeps its high byte, and alpha is dropped, as common loaders do.

    Args:
        data: the whole file.
        native_size: (height, width) as `native_size_of` returns it; the view's box lies inside.
        resize: see `show`.

    Raises:
        ValueError: the file is broken, or has another size than its header said.
    """
    height, width = view.box[2:]
    # The whole image's size at which the box is just as large as the view.
    needed = (
        math.ceil(native_size[0] * view.height / height),
        math.ceil(native_size[1] * view.width / width),
    )
    # At 3/8 a decoder takes longer than at 1/2, and at 5/8 longer than for the whole image. Pillow's filter
    # would lose more on the larger image than that.
    image = decode_whole(data, needed, native_size, any_scale=resize == "pillow")
    return show(image, view, native_size, resize)


def show(
    image: np.ndarray | Image.Image, view: View, native_size: tuple[int, int], resize: Resize = "pillow"
) -> np.ndarray:
    """The pixels of a view: crop, resize, mirror; uint8 [view.height, view.width, 3].

    Args:
        image: RGB and upright, with `native_size` or smaller; an array is uint8 [height, width, 3].
        native_size: (height, width) in which the view's box is given.
        resize: what applies the antialiased bicubic filter. `torch` takes a fraction of the time. It cuts the
            box out first, in whole pixels of `image`. A whole image differs by 1 or 2 grey levels in few
            values, by more where the filter overshoots 0 or 255; a crop is shifted by up to half a pixel of
            `image` and differs along its edges, as the filter does not see what lies outside.
    """
    top, left, height, width = view.box
    own_height, own_width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
    scale_y, scale_x = own_height / native_size[0], own_width / native_size[1]
    box = (left * scale_x, top * scale_y, (left + width) * scale_x, (top + height) * scale_y)
    match resize:
        case "pillow":
            image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            image = image.resize((view.width, view.height), Image.Resampling.BICUBIC, box)
            if view.flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return np.array(image)
        case "torch":
            pixels = image if isinstance(image, np.ndarray) else np.array(image)
            return _resize_by_torch(pixels, box, view)
    assert_never(resize)


def _resize_by_torch(pixels: np.ndarray, box: tuple[float, float, float, float], view: View) -> np.ndarray:
    """A box (left, top, right, bottom) of uint8 [H, W, 3], made whole and not empty, in the size of a view.

    The channels stay the innermost axis all the way, for which torch has vector instructions. It recognises
    them by the strides, so the axis of images comes first and then the channels are moved.
    """
    left, top = (min(round(box[axis]), pixels.shape[1 - axis] - 1) for axis in (0, 1))
    right, bottom = max(round(box[2]), left + 1), max(round(box[3]), top + 1)
    images = torch.from_numpy(pixels[top:bottom, left:right])[None].permute(0, 3, 1, 2)
    small = interpolate(images, (view.height, view.width), mode="bicubic", antialias=True)
    small = small.flip(3) if view.flip else small
    return small.permute(0, 2, 3, 1).numpy()[0]
