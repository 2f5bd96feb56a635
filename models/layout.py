"""Where every token of a batch stands while it is in the model.

cls and register tokens stand at the start of their image's segment, so a batch of T slots and N images
becomes a flat sequence of T + N * prefix slots. Computed once a batch, on its device, without waiting for it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from packvit.packing import PackedBatch


@dataclass(frozen=True)
class Layout:
    """The model's flat sequence of T' slots, which holds N images in `segments` segments.

    Args:
        cu_seqlens: int32 [segments + 1], offsets of the segments; padding keeps its own.
        segment: int64 [T'], segment of each slot.
        image_index: int64 [T'], image of each slot, -1 = padding.
        is_patch: bool [T'], True where an image's own token stands.
        slot_of: int64 [T], slot of each slot of the batch; None when nothing moved.
        image_segment: int64 [N], segment of each image.
        prefix_slots: int64 [N, prefix].
        max_len: an upper bound of the segments' lengths.
    """

    cu_seqlens: Tensor
    segment: Tensor
    image_index: Tensor
    is_patch: Tensor
    slot_of: Tensor | None
    image_segment: Tensor
    prefix_slots: Tensor
    max_len: int

    @property
    def num_slots(self) -> int:
        """T'."""
        return self.segment.shape[0]

    @property
    def num_images(self) -> int:
        """N."""
        return self.image_segment.shape[0]

    def place(self, values: Tensor) -> Tensor:
        """Values of the batch's slots [T, ...] at their slots here [T', ...]; zeros for prefix tokens."""
        if self.slot_of is None:
            return values
        return values.new_zeros(self.num_slots, *values.shape[1:]).index_copy(0, self.slot_of, values)

    @staticmethod
    def build(batch: PackedBatch, prefix: int) -> "Layout":
        """The layout of `batch` with `prefix` tokens before each image's own."""
        device, num_images = batch.image_index.device, batch.num_images
        cu = batch.cu_seqlens.long()
        slots = torch.arange(batch.num_slots, device=device)
        segment = torch.searchsorted(cu[1:], slots, right=True)  # [T]
        image_of_segment = batch.image_index.long().index_select(0, cu[:-1])  # [segments], -1 = padding
        is_image = image_of_segment >= 0
        # Padding segments write to a place of their own, which is then cut off.
        image_segment = torch.zeros(num_images + 1, dtype=torch.int64, device=device).scatter(
            0, image_of_segment.where(is_image, num_images), torch.arange(len(cu) - 1, device=device)
        )[:num_images]
        slot_of = None
        if prefix:
            shift = torch.nn.functional.pad(is_image.cumsum(0), (1, 0)) * prefix  # [segments + 1]
            cu = cu + shift
            slot_of = slots + shift[segment + 1]
            slots = torch.arange(batch.num_slots + prefix * num_images, device=device)
            segment = torch.searchsorted(cu[1:], slots, right=True)
        image_index = image_of_segment[segment]
        return Layout(
            cu_seqlens=cu.int(),
            segment=segment,
            image_index=image_index,
            is_patch=(image_index >= 0) & (slots - cu[segment] >= prefix),
            slot_of=slot_of,
            image_segment=image_segment,
            prefix_slots=cu[image_segment][:, None] + torch.arange(prefix, device=device),
            max_len=batch.max_len + prefix,
        )
