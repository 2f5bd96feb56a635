"""Segments of flat tokens: the place of each token, and attention within a segment.

The tokens of an owner, which is an image or a text, are one segment: they attend only to each other (NaViT
3.1, masked self-attention). Padding has segments without an owner. `Layout` and `Segments` are made once for
a batch, on its device, and not for each layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from packvit.models.attention.backends import BACKENDS, find_backend


@dataclass(frozen=True)
class Layout:
    """Flat tokens [T'] of N owners in segments, with `prefix` learned tokens before each owner's own.

    Args:
        cu_seqlens: int32 [segments + 1], offsets of the segments; padding keeps its own.
        segment: int64 [T'], segment of each token.
        owner: int64 [T'], owner of each token, -1 = padding.
        is_own: bool [T'], False for prefix tokens and padding.
        slot_of: int64 [T], the new slot of each of the T tokens without prefix; None if nothing moved.
        owner_segment: int64 [N], segment of each owner.
        prefix_slots: int64 [N, prefix].
        max_len: an upper bound of the segments' lengths.
    """

    cu_seqlens: Tensor
    segment: Tensor
    owner: Tensor
    is_own: Tensor
    slot_of: Tensor | None
    owner_segment: Tensor
    prefix_slots: Tensor
    max_len: int

    @property
    def num_slots(self) -> int:
        """T'."""
        return self.segment.shape[0]

    @property
    def num_owners(self) -> int:
        """N."""
        return self.owner_segment.shape[0]

    def place(self, values: Tensor, fill: float = 0) -> Tensor:
        """Values of tokens without prefix [T, ...] at their slots [T', ...]; prefix tokens get `fill`."""
        if self.slot_of is None:
            return values
        filled = values.new_full((self.num_slots, *values.shape[1:]), fill)
        return filled.index_copy(0, self.slot_of, values)

    @staticmethod
    def build(cu_seqlens: Tensor, owner: Tensor, num_owners: int, max_len: int, prefix: int = 0) -> "Layout":
        """The layout of T tokens, made without waiting for the device.

        Args:
            cu_seqlens: integer [segments + 1], ascending offsets from 0 to T; each owner has one segment. The
                last offset may be repeated, which adds empty segments without an owner: if offsets are padded
                to a fixed number of segments, all batches have tensors of the same shape.
            owner: integer [T], 0..N-1, -1 = padding.
            num_owners: N.
            max_len: an upper bound of the segments' lengths.
            prefix: tokens to put before each owner's own.
        """
        device = owner.device
        cu = cu_seqlens.long()
        slots = torch.arange(owner.shape[0], device=device)
        segment = torch.searchsorted(cu[1:], slots, right=True)  # [T]
        # An empty segment at the end starts behind the last token, where no owner is.
        owner_of_segment = F.pad(owner.long(), (0, 1), value=-1).index_select(0, cu[:-1])  # [segments]
        is_owned = owner_of_segment >= 0
        # Padding segments write to a place of their own, which is then cut off.
        owner_segment = torch.zeros(num_owners + 1, dtype=torch.int64, device=device).scatter(
            0, owner_of_segment.where(is_owned, num_owners), torch.arange(len(cu) - 1, device=device)
        )[:num_owners]
        slot_of = None
        if prefix:
            shift = F.pad(is_owned.cumsum(0), (1, 0)) * prefix  # [segments + 1]
            cu = cu + shift
            slot_of = slots + shift[segment + 1]
            slots = torch.arange(owner.shape[0] + prefix * num_owners, device=device)
            segment = torch.searchsorted(cu[1:], slots, right=True)
        owner = owner_of_segment[segment]
        return Layout(
            cu_seqlens=cu.int(),
            segment=segment,
            owner=owner,
            is_own=(owner >= 0) & (slots - cu[segment] >= prefix),
            slot_of=slot_of,
            owner_segment=owner_segment,
            prefix_slots=cu[owner_segment][:, None] + torch.arange(prefix, device=device),
            max_len=max_len + prefix,
        )


@dataclass(frozen=True)
class Segments:
    """The segments of one batch, as one backend needs them.

    Args:
        cu_seqlens: int32 [segments + 1], ascending offsets from 0 to T; the last may be repeated.
        max_len: an upper bound of the segments' lengths.
        backend: a key of BACKENDS.
        plan: the result of the backend's preparation.
    """

    cu_seqlens: Tensor
    max_len: int
    backend: str
    plan: Any

    @staticmethod
    def build(
        cu_seqlens: Tensor, max_len: int, backend: str = "sdpa", total: int | None = None
    ) -> "Segments":
        """Prepare a batch for `backend`, on the device of `cu_seqlens`.

        `total` is T; None reads it from the offsets. sdpa and xformers read the offsets on the host, once a
        batch; varlen and flex wait for nothing when `total` is given.

        Raises:
            ValueError: `backend` is unknown.
        """
        total = int(cu_seqlens[-1]) if total is None else total
        plan = find_backend(backend).prepare(cu_seqlens, max_len, total)
        return Segments(cu_seqlens, max_len, backend, plan)


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v within each segment.

    Args:
        q, k, v: [T, heads, head_dim], one dtype; fp16 or bf16 for varlen.
        segments: of the same T tokens.

    Returns:
        [T, heads, head_dim].
    """
    return BACKENDS[segments.backend].attend(q, k, v, segments.plan)
