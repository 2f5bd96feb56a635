"""Pooling: from the tokens of each owner, an image or a text, to one vector.

Sums run over contiguous segments one after another, so that an image's result does not depend on the rest of
the batch, not even in its last bit.
"""

from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packvit.models.attention.segments import Layout
from packvit.models.encoder.block import BlockConfig, Mlp, linear, make_norm

PIECE = 32  # tokens


def segment_reduce(x: Tensor, layout: Layout, how: str = "sum") -> Tensor:
    """[T, ...] -> [segments, ...]: the sum or max over each segment's slots.

    On a GPU, `torch.segment_reduce` walks along a segment with one thread for each channel. Segments are
    therefore cut into pieces first, and a walk over n slots takes only PIECE + n / PIECE steps. Pieces are
    counted from the start of their own segment, so its sum does not depend on its place in the batch.
    """
    cu = layout.cu_seqlens.long()
    # No batch needs more pieces than this; the rest of them are empty.
    pieces = torch.arange(x.shape[0] // PIECE + len(cu), device=cu.device)
    ends = ((cu.diff() + PIECE - 1) // PIECE).cumsum(0)  # [segments], of each segment's pieces
    starts = F.pad(ends, (1, 0))  # [segments + 1]
    segment = torch.searchsorted(ends, pieces, right=True)
    offsets = (cu[segment] + PIECE * (pieces - starts[segment])).clamp(max=x.shape[0])
    # Unchecked: the check of the offsets would wait for the device.
    parts = torch.segment_reduce(x, how, offsets=offsets, axis=0, unsafe=True)
    return torch.segment_reduce(parts, how, offsets=starts, axis=0, unsafe=True)


def mean_pool(x: Tensor, layout: Layout) -> Tensor:
    """Tokens [T, D] -> [N, D], the mean of each owner's tokens without prefix tokens."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))  # a long sum needs the digits
    prefix = layout.prefix_slots.shape[1]
    if prefix:
        values = values.where(layout.is_own[:, None], 0)
    # Padding has segments of its own, which nobody reads.
    sums = segment_reduce(values, layout)[layout.owner_segment]
    counts = layout.cu_seqlens.diff()[layout.owner_segment] - prefix
    return (sums / counts[:, None]).to(x.dtype)


class AttentionPool(nn.Module):
    """A learned query attends to an owner's tokens without prefix tokens; then comes an MLP with a residual
    (MAP; Zhai et al., arXiv 2106.04560, 2.2)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.probe = nn.Parameter(torch.randn(width) * 0.02)
        self.q = linear(width, width, config.bias_of_qkv)
        self.kv = linear(width, 2 * width, config.bias_of_qkv, parts=2)
        self.proj = linear(width, width, config.biases)
        self.norm = make_norm(config, width)
        kind = "gelu_tanh" if config.mlp == "swiglu" else config.mlp
        self.mlp = Mlp(width, config.hidden, kind, config.biases)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[T, D] -> [N, D]."""
        q = self.q(self.probe).unflatten(0, (self.heads, -1))  # [heads, head_dim]
        k, v = self.kv(x).unflatten(1, (2, self.heads, -1)).unbind(1)  # [T, heads, head_dim]
        # Sums over long segments need float32, whatever autocast chose for the products.
        dtype = torch.promote_types(v.dtype, torch.float32)
        scores = (k.to(dtype) * q.to(dtype)).sum(-1) * q.shape[-1] ** -0.5  # [T, heads]
        weights = segment_softmax(scores.masked_fill(~layout.is_own[:, None], -torch.inf), layout)
        pooled = segment_reduce(weights[:, :, None] * v.to(dtype), layout)[layout.owner_segment]
        y = self.proj(pooled.flatten(1).to(v.dtype))  # [N, D]
        return y + self.mlp(self.norm(y))


def segment_softmax(scores: Tensor, layout: Layout) -> Tensor:
    """[T, heads] -> the same shape, summing to 1 over each owner's segment; -inf and padding get 0."""
    with torch.no_grad():
        top = segment_reduce(scores, layout, "max")
        # A segment of padding has no finite score; any finite shift will do there.
        top = top.masked_fill(top == -torch.inf, 0)
    weights = (scores - top[layout.segment]).exp()
    totals = segment_reduce(weights, layout)
    return weights / totals.masked_fill(totals == 0, 1)[layout.segment]


PoolKind = Literal["mean", "map", "cls", "cls_mean"]


class Pool(nn.Module):
    """One kind of pooling: mean, map, cls (the first prefix token) or cls_mean (both, 2 * width)."""

    def __init__(self, config: BlockConfig, kind: PoolKind) -> None:
        super().__init__()
        self.kind: PoolKind = kind
        self.attention = AttentionPool(config) if kind == "map" else None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Tokens [T, D] -> [N, D], or [N, 2 * D] for cls_mean."""
        match self.kind:
            case "map":
                assert self.attention is not None
                return self.attention(x, layout)
            case "mean":
                return mean_pool(x, layout)
            case "cls":
                return x[layout.prefix_slots[:, 0]]
            case "cls_mean":
                return torch.cat([x[layout.prefix_slots[:, 0]], mean_pool(x, layout)], 1)
            case _ as unknown:
                assert_never(unknown)
