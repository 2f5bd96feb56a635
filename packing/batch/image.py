"""The parts of a batch: images that are cut into patches, and the values of their targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]  # of a patch in pixels, (height, width), or of a tubelet, (frames, height, width)


@dataclass(frozen=True, slots=True)
class PackedImage:
    """The kept tokens of one image, along A axes: 2 for a picture, 3 for a clip.

    Places and extents count cells, the finest patches of the image. In a uniform grid every token is one
    cell.

    Args:
        patches: {shape: uint8 [n, prod(shape) * 3]}, kept patches by shape; row-major (..., row, col,
            channel) inside a patch. Tokens are in the order of this dictionary.
        coords: int32 [tokens, A], the first cell of each token, in raster order within a shape.
        grid: cells along each axis, before dropping.
        cell: pixels (or frames) of a cell along each axis.
        native_size: (height, width) of the stored image.
        key: name of the sample.
        extents: int32 [tokens, A], cells that each token covers; None: 1 everywhere.
        token_grid: tokens along each axis, before dropping, of an image whose patches overlap; None: patches
            tile the image.
        targets: the image's targets by name.
    """

    patches: Mapping[Shape, np.ndarray]
    coords: np.ndarray
    grid: Shape
    cell: Shape
    native_size: tuple[int, int]
    key: str = ""
    extents: np.ndarray | None = None
    token_grid: Shape | None = None
    targets: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Kept tokens."""
        return len(self.coords)


class ImageFacts(NamedTuple):
    """Properties by which the N images of a batch can be grouped, in host memory.

    patch_size: int64 [N], pixels.
    resolution: float64 [N], pixels.
    drop_rate: float64 [N], the share of each image's cells that no kept token covers; if patches overlap, the
        share of its tokens that were dropped.
    """

    patch_size: np.ndarray
    resolution: np.ndarray
    drop_rate: np.ndarray


class Ragged(NamedTuple):
    """Any number of rows for each image, such as its boxes.

    values: [rows of all images, ...], image after image.
    offsets: int64 [N + 1]; image i has the rows from offsets[i] to offsets[i + 1].
    """

    values: Tensor
    offsets: Tensor

    def rows(self, image: int) -> Tensor:
        """The rows of one image; on a GPU it waits for the device."""
        return self.values[int(self.offsets[image]) : int(self.offsets[image + 1])]

    @staticmethod
    def join(parts: Sequence[np.ndarray], empty: np.ndarray) -> "Ragged":
        """The rows of all images one after the other; `empty` [0, ...] gives type and shape if there are
        none."""
        offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return Ragged(torch.from_numpy(np.concatenate([empty, *parts])), torch.from_numpy(offsets))


class Mixed(NamedTuple):
    """Two values of one target for each image, because images were mixed.

    own, partner: the target of the image itself and of the one it is mixed with, in the same form.
    share: float32 [N], how much of each image is its own, 0..1.
    """

    own: Tensor
    partner: Tensor
    share: Tensor


# A target of a whole batch: a tensor, a NamedTuple of tensors such as Ragged and Mixed, or texts.
Collated = Tensor | tuple[Any, ...] | list[str]
