"""The sdpa backend: segments sorted into a few buckets of similar length, one kernel call a bucket.

A bucket pads its segments to the longest of them. The cuts minimise the total cost of padded attention plus a
fixed cost per bucket, by dynamic programming over the distinct lengths. Padding repeats the segment's own
last token behind a mask, so a segment never reads another one, not even multiplied by zero.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Cost of a bucket and of a padded token in units of one query-key pair: a call costs about 0.4 ms forward and
# backward, a pair 20 ns at 3 heads of 64 channels (bfloat16, one core of an AMD EPYC with AVX-512).
BUCKET_COST = 16384
TOKEN_COST = 64


@dataclass(frozen=True)
class Bucket:
    """`count` segments padded to `length`; mask bool [count, 1, 1, length] or None when nothing is padded."""

    count: int
    length: int
    mask: Tensor | None


@dataclass(frozen=True)
class BucketPlan:
    """How flat tokens [T] are laid out in buckets with U slots in total.

    Args:
        source: int64 [U], the token that each slot holds or repeats.
        place: int64 [T], the slot that holds each token itself.
        buckets: in order; their counts times lengths add up to U.
    """

    source: Tensor
    place: Tensor
    buckets: list[Bucket]


class _Spread(torch.autograd.Function):
    """Tokens to padded slots, x[source]; the gradient is the gather grad[place] instead of a slow scatter.

    Exact because the slots that repeat a token are masked and their outputs unused: they get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return grads[0].index_select(0, place), None, None


class _Collect(torch.autograd.Function):
    """Padded slots to tokens, x[place]; no two tokens read the same slot, so the gradient is a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.slots = x.shape[0]
        return x.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        zeros = grads[0].new_zeros(ctx.slots, *grads[0].shape[1:])
        return zeros.index_copy(0, place, grads[0]), None


def choose_cuts(lengths: np.ndarray) -> list[int]:
    """The padded lengths of the buckets, ascending, for segments of the given lengths (int [n])."""
    sizes, counts = np.unique(lengths, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    best = np.zeros(len(sizes) + 1)  # best[j]: cost of the j shortest sizes
    cut = np.zeros(len(sizes) + 1, dtype=np.int64)
    for j in range(1, len(sizes) + 1):
        length = int(sizes[j - 1])
        pairs = (before[j] - before[:j]) * (length * length + TOKEN_COST * length)
        costs = best[:j] + pairs + BUCKET_COST
        cut[j] = int(costs.argmin())
        best[j] = costs[cut[j]]
    ends = []
    j = len(sizes)
    while j:
        ends.append(int(sizes[j - 1]))
        j = int(cut[j])
    return ends[::-1]


def prepare_sdpa(cu_seqlens: Tensor, max_len: int, total: int) -> BucketPlan:
    """Plan the buckets; reads `cu_seqlens` on the host, which waits for the device it is on."""
    cu = cu_seqlens.cpu().numpy().astype(np.int64)
    starts, lengths = cu[:-1], np.diff(cu)
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    ends = np.array(choose_cuts(lengths), dtype=np.int64)
    bucket_of = np.searchsorted(ends, lengths)
    source, masks = [], []
    place = np.empty(total, dtype=np.int64)
    used = 0
    for b, length in enumerate(ends):
        members = np.flatnonzero(bucket_of == b)
        offset = np.arange(length)
        real = offset < lengths[members, None]  # [count, length]
        tokens = starts[members, None] + np.minimum(offset, lengths[members, None] - 1)
        place[tokens[real]] = used + np.flatnonzero(real)
        used += tokens.size
        source.append(tokens.ravel())
        masks.append(None if real.all() else torch.from_numpy(real)[:, None, None].to(cu_seqlens.device))
    return BucketPlan(
        source=torch.from_numpy(np.concatenate(source)).to(cu_seqlens.device),
        place=torch.from_numpy(place).to(cu_seqlens.device),
        buckets=[
            Bucket(int((bucket_of == b).sum()), int(length), mask)
            for b, (length, mask) in enumerate(zip(ends, masks, strict=True))
        ],
    )


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, plan: BucketPlan) -> Tensor:
    """[T, heads, head_dim] -> the same shape, with one kernel call for each bucket."""
    heads, head_dim = q.shape[1:]
    sizes = [b.count * b.length for b in plan.buckets]
    spread = (cast(Tensor, _Spread.apply(x, plan.source, plan.place)).split(sizes) for x in (q, k, v))
    outputs = []
    for bucket, *parts in zip(plan.buckets, *spread, strict=True):  # parts: [count * length, heads, head_dim]
        shape = (bucket.count, bucket.length, heads, head_dim)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        out = _kernel(q, k, v, bucket.mask)
        outputs.append(out.transpose(1, 2).reshape(-1, heads, head_dim))
    return cast(Tensor, _Collect.apply(torch.cat(outputs), plan.place))


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention over [count, heads, length, head_dim] with a mask bool [count, 1, 1, length] or None.

    On the CPU in half precision plain products are 3 (length 256 and 512: 1.5 and 3) to 6 times as fast as
    the fused kernel, which has no short blocks; past 1024 tokens their memory is too much.
    """
    count, heads, length, head_dim = q.shape
    if q.device.type != "cpu" or q.element_size() != 2 or length > 1024:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    bias = q.new_zeros(count, 1, 1, length)
    if mask is not None:
        bias = bias.masked_fill(~mask, -torch.inf)
    bias = bias.expand(-1, heads, -1, -1).reshape(-1, 1, length)
    q, k, v = (x.reshape(-1, length, head_dim) for x in (q, k, v))
    scores = torch.baddbmm(
        bias, q, k.transpose(1, 2), alpha=head_dim**-0.5
    )  # [count * heads, length, length]
    return torch.bmm(scores.softmax(-1), v).view(count, heads, length, head_dim)
