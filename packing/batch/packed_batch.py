"""PackedBatch: the one type that crosses rooms.

B sequences of S slots, flattened to T = B * S slots, hold the kept patches of N images. Patches are grouped
by their shape; `slots` says where in the flat batch each one goes. A segment is the run of slots of one
image; the padding at the end of a sequence is a segment of its own that belongs to no image.

Every token has a place and an extent along each of A axes, counted in cells; every image has a size in cells
and a cell size in pixels. Positions, FLOPs and pictures are derived from these four.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from itertools import chain, pairwise, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from packvit.packing.batch.image import Collated, ImageFacts, Mixed, PackedImage, Shape
from packvit.packing.batch.show import describe, draw


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Counts of a batch's content; they can be added over batches.

    Args:
        images, tokens, slots, sequences: counts.
        squared_lengths: sum over images of tokens**2, proportional to attention FLOPs.
    """

    images: int = 0
    tokens: int = 0
    slots: int = 0
    sequences: int = 0
    squared_lengths: int = 0

    @property
    def padding_fraction(self) -> float:
        """Empty slots / all slots."""
        return 1 - self.tokens / max(1, self.slots)

    @property
    def images_per_sequence(self) -> float:
        """Mean number of images in a sequence."""
        return self.images / max(1, self.sequences)

    def __add__(self, other: "BatchStats") -> "BatchStats":
        return BatchStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class PackedBatch:
    """B sequences of S slots (T = B * S) with the patches of N images of A axes.

    Args:
        patches: {shape: uint8 [n, prod(shape) * 3]}, kept patches grouped by their shape in pixels.
        slots: {shape: int64 [n]}, the flat slot of each patch.
        image_index: int32 [T], image of each slot, -1 = padding.
        coords: int32 [T, A], the first cell of each token, (row, col) in a picture; zeros in padding.
        extents: int32 [T, A], cells that each token covers; 1 in a uniform grid and in padding.
        grids: int32 [N, A], cells of each image before dropping, (rows, cols).
        cells: int32 [N, A], pixels of a cell.
        native_sizes: int32 [N, 2], height and width of the stored image.
        cu_seqlens: int32 [segments + 1], offsets of the segments in the flat batch.
        seq_len: S.
        max_len: length of the longest segment.
        counts: counts of the content, stored so that costs can be computed while the batch is on a device.
        token_grids: {image: tokens along each axis before dropping} of images whose patches overlap.
        keys: N sample names.
        targets: the images' targets by name; see `Collated`.
    """

    patches: dict[Shape, Tensor]
    slots: dict[Shape, Tensor]
    image_index: Tensor
    coords: Tensor
    extents: Tensor
    grids: Tensor
    cells: Tensor
    native_sizes: Tensor
    cu_seqlens: Tensor
    seq_len: int
    max_len: int
    counts: BatchStats
    token_grids: dict[int, Shape] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    targets: dict[str, Collated] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"PackedBatch({describe(self)})"

    def _repr_html_(self) -> str:
        """What a notebook shows; see `draw`."""
        return draw(self)

    @property
    def num_images(self) -> int:
        """N."""
        return self.grids.shape[0]

    @property
    def num_slots(self) -> int:
        """T = B * S."""
        return self.image_index.shape[0]

    @property
    def patch_sizes(self) -> Tensor:
        """int32 [N], side of each image's patches in pixels, or of the finest of them."""
        # Cells that the finest patch covers: several where patches overlap.
        most = self.extents.new_full((self.num_images + 1,), torch.iinfo(torch.int32).max)
        finest = most.scatter_reduce(0, self._owners(), self.extents[:, -1], "amin")
        return self.cells[:, -1] * finest[:-1]

    @property
    def labels(self) -> Tensor | None:
        """The target `label`: int64 [N] or [N, classes], of mixed images each one's own; None if there is
        none."""
        label = self.targets.get("label")
        return label.own if isinstance(label, Mixed) else label if isinstance(label, Tensor) else None

    def image_lengths(self) -> Tensor:
        """int64 [N], tokens of each image; waits for no device."""
        owners = self._owners()
        counts = owners.new_zeros(self.num_images + 1)
        return counts.scatter_add(0, owners, torch.ones_like(owners))[:-1]

    def _owners(self) -> Tensor:
        """int64 [T], the image of each slot; N in padding."""
        image = self.image_index.long()
        return image.where(image >= 0, self.num_images)

    def stats(self) -> BatchStats:
        """Counts of this batch, without waiting for the device."""
        return self.counts

    def facts(self) -> ImageFacts:
        """Properties by which its images can be grouped; on a GPU it waits for the device."""
        patch_size = self.patch_sizes.numpy(force=True).astype(np.int64)
        cells = self.grids.numpy(force=True).prod(1, dtype=np.int64)
        resolution = np.sqrt(cells) * self.cells.numpy(force=True)[:, -1]
        # Column by column, with a bin for padding (-1): a product along rows and a selection take longer.
        covered = reduce(np.multiply, self.extents.numpy(force=True).astype(np.int64).T)
        bins = np.bincount(self.image_index.numpy(force=True) + 1, covered, self.num_images + 1)
        drop_rate = 1 - bins[1:] / cells
        if self.token_grids:
            lengths = self.image_lengths().numpy(force=True)
            for image, grid in self.token_grids.items():
                drop_rate[image] = 1 - lengths[image] / math.prod(grid)
        return ImageFacts(patch_size, resolution, drop_rate)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The batch on `device`; copies from pinned memory to a GPU do not block."""
        return map_leaves(self, Tensor, lambda tensor: send(tensor, device))

    def pin_memory(self) -> "PackedBatch":
        """The batch in page-locked memory, from which copies to a GPU run in the background."""
        return map_leaves(self, Tensor, Tensor.pin_memory)

    @staticmethod
    def build(
        sequences: Sequence[Sequence[PackedImage]],
        seq_len: int,
        numbers: Sequence[int] | None = None,
        min_sequences: int = 0,
        collate: Callable[[Sequence[PackedImage]], dict[str, Collated]] | None = None,
    ) -> "PackedBatch":
        """Lay images out in sequences of `seq_len` slots; the rest of each sequence becomes padding.

        An image with a sequence of its own may be longer: it takes the space of as many sequences as needed.

        Args:
            numbers: the `image_index` of each image in the order in which the sequences hold them, a
                permutation of 0..N-1; None numbers them in that order.
            min_sequences: empty sequences are added up to this number.
            collate: makes the batch's targets from its images, in their order; None stacks the targets that
                all images have.

        Raises:
            ValueError: a sequence's images have more than `seq_len` tokens; names the first one beyond.
        """
        images = list(chain.from_iterable(sequences))
        numbers = range(len(images)) if numbers is None else numbers
        heights = [-(-len(s[0].coords) // seq_len) if len(s) == 1 else 1 for s in sequences]
        heights += [1] * (min_sequences - sum(heights))
        tokens = _Tokens(sum(heights) * seq_len, len(images[0].grid) if images else 2)
        index, end = 0, 0
        for height, sequence in zip(heights, chain(sequences, repeat(())), strict=False):
            end += height * seq_len
            for image in sequence:
                if tokens.used + len(image.coords) > end:
                    raise ValueError(f"image {image.key!r} does not fit: its sequence has {seq_len} slots")
                tokens.add(image, numbers[index])
                index += 1
            tokens.pad(end)
        images = [image for _, image in sorted(zip(numbers, images, strict=True), key=lambda pair: pair[0])]
        return PackedBatch(
            **tokens.tensors(),
            grids=tokens.stack([image.grid for image in images]),
            cells=tokens.stack([image.cell for image in images]),
            native_sizes=torch.tensor([i.native_size for i in images], dtype=torch.int32).reshape(-1, 2),
            seq_len=seq_len,
            max_len=max((b - a for a, b in pairwise(tokens.offsets)), default=0),
            counts=BatchStats(
                images=len(images),
                tokens=sum(len(image.coords) for image in images),
                slots=len(tokens.image_index),
                sequences=len(tokens.image_index) // seq_len,
                squared_lengths=sum(len(image.coords) ** 2 for image in images),
            ),
            token_grids={n: image.token_grid for n, image in enumerate(images) if image.token_grid},
            keys=[image.key for image in images],
            targets=(collate or stack_targets)(images),
        )


class _Tokens:
    """The flat slots of a batch, filled from the first on."""

    def __init__(self, slots: int, axes: int) -> None:
        self.axes = axes
        self.used = 0
        self.image_index = np.full(slots, -1, np.int32)
        self.coords = np.zeros((slots, axes), np.int32)
        self.extents = np.ones((slots, axes), np.int32)
        self.offsets = [0]
        self.groups: dict[Shape, tuple[list[np.ndarray], list[np.ndarray]]] = {}  # patches and their slots

    def add(self, image: PackedImage, number: int) -> None:
        """The next slots are those of `image`."""
        start = self.used
        for shape, patches in image.patches.items():
            group = self.groups.setdefault(shape, ([], []))
            group[0].append(patches)
            group[1].append(np.arange(start, start + len(patches), dtype=np.int64))
            start += len(patches)
        assert start - self.used == len(image.coords), (
            f"{image.key!r} has other numbers of places and patches"
        )
        self.image_index[self.used : start] = number
        self.coords[self.used : start] = image.coords
        if image.extents is not None:
            self.extents[self.used : start] = image.extents
        self.used = start
        self.offsets.append(start)

    def pad(self, end: int) -> None:
        """What is left up to `end` is padding."""
        if self.used < end:
            self.used = end
            self.offsets.append(end)

    def stack(self, values: Sequence[Shape]) -> Tensor:
        """int32 [N, axes]."""
        return torch.tensor(values, dtype=torch.int32).reshape(-1, self.axes)

    def tensors(self) -> dict:
        """The batch's fields that tokens decide."""
        groups = sorted(self.groups.items())
        return {
            "patches": {shape: torch.from_numpy(np.concatenate(group[0])) for shape, group in groups},
            "slots": {shape: torch.from_numpy(np.concatenate(group[1])) for shape, group in groups},
            "image_index": torch.from_numpy(self.image_index),
            "coords": torch.from_numpy(self.coords),
            "extents": torch.from_numpy(self.extents),
            "cu_seqlens": torch.tensor(self.offsets, dtype=torch.int32),
        }


def stack_targets(images: Sequence[PackedImage]) -> dict[str, Collated]:
    """The targets that all images have, each stacked; none without images."""
    names: Mapping = images[0].targets if images else {}
    return {
        name: stack([image.targets[name] for image in images])
        for name in names
        if all(image.targets.get(name) is not None for image in images)
    }


def stack(values: Sequence[Any]) -> Collated:
    """Values of one type and shape, at least one, in one.

    Whole numbers become int64 [N], other numbers float32 [N], arrays [N, ...], texts a list.
    """
    if isinstance(values[0], str):
        return list(values)
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values))
    return torch.tensor(values, dtype=torch.float32 if isinstance(values[0], float) else torch.int64)


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on `device`. A copy to the host is waited for: it would be read before it has arrived."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


def map_leaves(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to every part of type `kind`.

    Looks into dictionaries, tuples and dataclasses, but not into lists, which hold texts and plain numbers.
    """
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {name: map_leaves(inner, kind, function) for name, inner in value.items()}
    if isinstance(value, tuple):
        inner = [map_leaves(item, kind, function) for item in value]
        return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
    if hasattr(value, "__dataclass_fields__"):
        names = value.__dataclass_fields__
        return type(value)(**{name: map_leaves(getattr(value, name), kind, function) for name in names})
    return value
