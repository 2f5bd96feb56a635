"""A batch in one piece of memory, to be handed from process to process.

Between processes every tensor is a shared-memory file with a descriptor of its own, and a batch of ten patch
sizes has thirty tensors: a few waiting batches would use up a process's descriptors. One buffer needs one,
is pinned in one go, and its tensors are views into it.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from packvit.packing.batch import PackedBatch

ALIGNMENT = 64  # bytes


@dataclass
class FlatBatch:
    """A PackedBatch whose tensors lie one after the other in `buffer`, uint8 [bytes].

    Args:
        places: (field, patch size or None, dtype, shape, first byte) of every tensor.
        rest: the fields that are no tensors.
    """

    buffer: Tensor
    places: list[tuple[str, int | None, torch.dtype, torch.Size, int]]
    rest: dict[str, Any]

    @staticmethod
    def pack(batch: PackedBatch) -> "FlatBatch":
        """Copy a batch's tensors into one buffer."""
        tensors: list[tuple[str, int | None, Tensor]] = []
        rest = {}
        for f in fields(batch):
            value = getattr(batch, f.name)
            if isinstance(value, Tensor):
                tensors.append((f.name, None, value))
            elif isinstance(value, dict):
                tensors += [(f.name, p, tensor) for p, tensor in value.items()]
            else:
                rest[f.name] = value
        places, size = [], 0
        for name, p, tensor in tensors:
            places.append((name, p, tensor.dtype, tensor.shape, size))
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        flat = FlatBatch(torch.empty(size, dtype=torch.uint8), places, rest)
        for (_, _, tensor), place in zip(tensors, places, strict=True):
            flat._view(place).copy_(tensor)
        return flat

    def unpack(self) -> PackedBatch:
        """The batch; its tensors are views of the buffer."""
        values: dict[str, Any] = {"patches": {}, "slots": {}}
        for place in self.places:
            name, p, *_ = place
            if p is None:
                values[name] = self._view(place)
            else:
                values[name][p] = self._view(place)
        return PackedBatch(**values, **self.rest)

    def pin_memory(self) -> "FlatBatch":
        """The same in page-locked memory."""
        return FlatBatch(self.buffer.pin_memory(), self.places, self.rest)

    def _view(self, place: tuple[str, int | None, torch.dtype, torch.Size, int]) -> Tensor:
        _, _, dtype, shape, start = place
        size = shape.numel() * dtype.itemsize
        return self.buffer[start : start + size].view(dtype).view(shape)
