"""PackedBatch: the one type that crosses folders.

B sequences of S slots, flattened to T = B * S slots, hold the kept patches of N images. Patches are
grouped by patch size; `slots` says where in the flat batch each one goes. A segment is the run of
slots of one image; the padding at a row's end is a segment of its own that belongs to no image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedImage:
    """One image, cut and dropped, ready for a slot in a sequence.

    Args:
        patches: uint8 [n, p*p*3], row-major (row, col, channel) inside a patch.
        coords: int32 [n, 2], (row, col) of each kept patch, in raster order.
        grid: (rows, cols) before dropping.
        patch_size: p, in pixels.
        native_size: (height, width) of the stored image.
        label: class index; uint8 or float32 [classes], one target for each; or None where the task
            has none.
        key: name of the sample.
        logits: floating [classes], a teacher's stored answer, or None.
        mix_label: label of the image that this one is mixed with; None where it is not or has none.
        mix_weight: share of the own label in a mixed image, 0..1, or None.
        caption: a text about the image, or None.
    """

    patches: np.ndarray
    coords: np.ndarray
    grid: tuple[int, int]
    patch_size: int
    native_size: tuple[int, int]
    label: int | np.ndarray | None = None
    key: str = ""
    logits: np.ndarray | None = None
    mix_label: int | np.ndarray | None = None
    mix_weight: float | None = None
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What a batch holds; sums over batches are sums of these.

    Args:
        images, tokens, slots, sequences: counts.
        squared_lengths: sum over images of tokens**2, proportional to attention FLOPs.
    """

    images: int
    tokens: int
    slots: int
    sequences: int
    squared_lengths: int

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
    """B sequences of S slots (T = B * S) with the patches of N images.

    Args:
        patches: {p: uint8 [n_p, p*p*3]}, kept patches grouped by patch size.
        slots: {p: int64 [n_p]}, the flat slot of each patch.
        image_index: int32 [T], image of each slot, -1 = padding.
        coords: int32 [T, 2], (row, col) in the view's grid; zeros in padding.
        grids: int32 [N, 2], rows and columns before dropping.
        patch_sizes: int32 [N], pixels.
        native_sizes: int32 [N, 2], height and width of the stored image.
        cu_seqlens: int32 [segments + 1], offsets of the segments in the flat batch.
        seq_len: S.
        max_len: a bound on the segments' lengths, S or, where an image takes several rows, a multiple of it.
        labels: int64 [N]; targets, uint8 or float32 [N, classes]; None where the task has none.
        keys: N sample names.
        logits: floating [N, classes], a teacher's stored answers, or None where not every image has one.
        mix_labels: as `labels`, of the images that these are mixed with, or None where not all have one.
        mix_weights: float32 [N], share of the own label in each target, or None where images are not mixed.
        captions: N texts, or none where not every image has one.
    """

    patches: dict[int, Tensor]
    slots: dict[int, Tensor]
    image_index: Tensor
    coords: Tensor
    grids: Tensor
    patch_sizes: Tensor
    native_sizes: Tensor
    cu_seqlens: Tensor
    seq_len: int
    max_len: int
    labels: Tensor | None = None
    keys: list[str] = field(default_factory=list)
    logits: Tensor | None = None
    mix_labels: Tensor | None = None
    mix_weights: Tensor | None = None
    captions: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """N."""
        return self.grids.shape[0]

    @property
    def num_slots(self) -> int:
        """T = B * S."""
        return self.image_index.shape[0]

    def image_lengths(self) -> Tensor:
        """int64 [N], tokens of each image; on a GPU it waits for the device."""
        return torch.bincount(self.image_index[self.image_index >= 0].long(), minlength=self.num_images)

    def stats(self) -> BatchStats:
        """Counts of this batch; waits for the device if the batch is on one."""
        lengths = self.image_lengths()
        return BatchStats(
            images=self.num_images,
            tokens=int(lengths.sum()),
            slots=self.num_slots,
            sequences=self.num_slots // self.seq_len,
            squared_lengths=int((lengths**2).sum()),
        )

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The batch on `device`; copies from pinned memory do not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PackedBatch":
        """The batch in page-locked memory, from which copies to a GPU run in the background."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> "PackedBatch":
        changes: dict = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changes[f.name] = function(value)
            elif isinstance(value, dict):
                changes[f.name] = {key: function(tensor) for key, tensor in value.items()}
        return replace(self, **changes)

    @staticmethod
    def build(
        sequences: Sequence[Sequence[PackedImage]],
        seq_len: int,
        numbers: Sequence[int] | None = None,
        min_rows: int = 0,
    ) -> "PackedBatch":
        """Lay images out in sequences of `seq_len` slots; what is left of a row becomes padding.

        An image with a sequence of its own may be longer: its sequence is as many rows as it needs.

        Args:
            numbers: the `image_index` of each image in the order in which the sequences hold them, a
                permutation of 0..N-1; None numbers them in that order.
            min_rows: empty rows are added up to this number.

        Raises:
            ValueError: a sequence's images have more than `seq_len` tokens; names the first that is over.
        """
        heights = [-(-len(s[0].patches) // seq_len) if len(s) == 1 else 1 for s in sequences]
        heights += [1] * (min_rows - sum(heights))
        total = sum(heights) * seq_len
        image_index = np.full(total, -1, np.int32)
        coords = np.zeros((total, 2), np.int32)
        offsets = [0]
        by_patch_size: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        images: list[PackedImage] = []
        numbers = range(sum(map(len, sequences))) if numbers is None else numbers
        end_of_row = 0
        for height, sequence in zip(heights, chain(sequences, repeat(())), strict=False):
            start = end_of_row
            end_of_row += height * seq_len
            for image in sequence:
                end = start + len(image.patches)
                if end > end_of_row:
                    raise ValueError(f"image {image.key!r} does not fit: its sequence has {seq_len} slots")
                image_index[start:end] = numbers[len(images)]
                coords[start:end] = image.coords
                patches, slots = by_patch_size.setdefault(image.patch_size, ([], []))
                patches.append(image.patches)
                slots.append(np.arange(start, end, dtype=np.int64))
                images.append(image)
                offsets.append(end)
                start = end
            if start < end_of_row:
                offsets.append(end_of_row)
        images = [image for _, image in sorted(zip(numbers, images, strict=True), key=lambda pair: pair[0])]
        mix_weights = [image.mix_weight for image in images if image.mix_weight is not None]
        mixed = len(mix_weights) == len(images) > 0
        captions = [image.caption for image in images if image.caption is not None]
        logits = [image.logits for image in images if image.logits is not None]
        return PackedBatch(
            patches={p: torch.from_numpy(np.concatenate(v[0])) for p, v in sorted(by_patch_size.items())},
            slots={p: torch.from_numpy(np.concatenate(v[1])) for p, v in sorted(by_patch_size.items())},
            image_index=torch.from_numpy(image_index),
            coords=torch.from_numpy(coords),
            grids=torch.tensor([image.grid for image in images], dtype=torch.int32).reshape(-1, 2),
            patch_sizes=torch.tensor([image.patch_size for image in images], dtype=torch.int32),
            native_sizes=torch.tensor([i.native_size for i in images], dtype=torch.int32).reshape(-1, 2),
            cu_seqlens=torch.tensor(offsets, dtype=torch.int32),
            seq_len=seq_len,
            max_len=max(heights, default=1) * seq_len,
            labels=_stack_labels([image.label for image in images]),
            keys=[image.key for image in images],
            logits=torch.from_numpy(np.stack(logits)) if images and len(logits) == len(images) else None,
            mix_labels=_stack_labels([image.mix_label for image in images]) if mixed else None,
            mix_weights=torch.tensor(mix_weights, dtype=torch.float32) if mixed else None,
            captions=captions if len(captions) == len(images) else [],
        )


def _stack_labels(labels: Sequence[int | np.ndarray | None]) -> Tensor | None:
    """[N] or [N, classes]; None where any is missing. A batch without images has labels: none of them."""
    if any(label is None for label in labels):
        return None
    if labels and isinstance(labels[0], np.ndarray):
        return torch.from_numpy(np.stack([np.asarray(label) for label in labels]))
    return torch.tensor(labels, dtype=torch.int64)
