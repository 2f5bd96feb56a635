"""Tensors in one piece of memory, to be handed from process to process.

Between processes, every tensor is a shared-memory file with its own descriptor, and a batch of ten patch
sizes has thirty tensors: a few waiting batches would use up a process's descriptors. A single buffer needs
one descriptor, can be pinned at once, and its tensors are views into it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from packvit.packing.batch.packed_batch import map_leaves, send

ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the buffer.

    Args:
        start: its first byte.
    """

    dtype: torch.dtype
    shape: torch.Size
    start: int


@dataclass(frozen=True)
class Flat:
    """A value whose tensors lie one after the other in `buffer`, uint8 [bytes]; `map_leaves` says where
    tensors are found.

    Args:
        value: the value with a `Place` instead of each tensor.
    """

    buffer: Tensor
    value: Any

    @staticmethod
    def pack(value: Any) -> "Flat":
        """Copy all tensors of a value into one buffer."""
        tensors: list[tuple[Tensor, Place]] = []
        size = 0

        def place(tensor: Tensor) -> Place:
            nonlocal size
            tensors.append((tensor, Place(tensor.dtype, tensor.shape, size)))
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
            return tensors[-1][1]

        places = map_leaves(value, Tensor, place)
        flat = Flat(_new_buffer(size), places)
        for tensor, where in tensors:
            flat._view(where).copy_(tensor)
        return flat

    def unpack(self) -> Any:
        """The value; its tensors are views of the buffer."""
        return map_leaves(self.value, Place, self._view)

    def pin_memory(self) -> "Flat":
        """The same in page-locked memory."""
        return Flat(self.buffer.pin_memory(), self.value)

    def to(self, device: torch.device | str) -> "Flat":
        """The same on `device`, in one copy; from page-locked memory it does not block."""
        return Flat(send(self.buffer, device), self.value)

    def _view(self, place: Place) -> Tensor:
        size = place.shape.numel() * place.dtype.itemsize
        return self.buffer[place.start : place.start + size].view(place.dtype).view(place.shape)


def _new_buffer(size: int) -> Tensor:
    """uint8 [size]; in a worker of a DataLoader in shared memory, to which the DataLoader would copy it."""
    buffer = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is None:
        return buffer.resize_(size)
    return buffer.set_(torch.UntypedStorage._new_shared(size))
