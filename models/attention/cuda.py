"""The backends with CUDA kernels; each reads the same offsets of segments.

varlen is FlashAttention over flat tokens; xformers the memory-efficient kernel with a block-diagonal bias;
flex compiles a kernel for a document mask. Kernels are imported when they are first prepared.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLEX_BLOCK = 128


def prepare_varlen(cu_seqlens: Tensor, max_len: int, total: int) -> tuple[Tensor, int]:
    """int32 offsets and the bound of the lengths; nothing is read on the host."""
    return cu_seqlens.int().contiguous(), max_len


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, plan: tuple[Tensor, int]) -> Tensor:
    """fp16 or bf16 on CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    cu_seqlens, max_len = plan
    head_dim = q.shape[-1]
    q, k, v = (_pad_heads(x) for x in (q, k, v))
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_len, max_len, scale=head_dim**-0.5)
    assert isinstance(out, Tensor)  # a pair only when auxiliary outputs are asked for
    return out[..., :head_dim]


def _pad_heads(x: Tensor) -> Tensor:
    """[T, heads, head_dim] with zeros up to a multiple of 8 channels, which the kernels' loads want."""
    return F.pad(x, (0, -x.shape[-1] % 8)) if x.shape[-1] % 8 else x


def prepare_xformers(cu_seqlens: Tensor, max_len: int, total: int) -> Any:
    """A BlockDiagonalMask; reads the offsets on the host, once a batch."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens(cu_seqlens.diff().tolist(), device=cu_seqlens.device)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor, bias: Any) -> Tensor:
    """Any floating dtype but float64, on CUDA."""
    from xformers.ops import memory_efficient_attention

    head_dim = q.shape[-1]
    q, k, v = (_pad_heads(x)[None] for x in (q, k, v))
    return memory_efficient_attention(q, k, v, attn_bias=bias, scale=head_dim**-0.5)[0, ..., :head_dim]


def prepare_flex(cu_seqlens: Tensor, max_len: int, total: int) -> Any:
    """A BlockMask of the documents, made from the offsets without a [T, T] mask.

    Documents are contiguous and numbered upwards, so a block of queries and a block of keys share a
    document exactly if their ranges of documents overlap, and are one document if both ranges are one.
    """
    from torch.nn.attention.flex_attention import BlockMask

    blocks = -(-total // FLEX_BLOCK)
    slots = torch.arange(blocks * FLEX_BLOCK, device=cu_seqlens.device).clamp(max=total - 1)
    document = torch.searchsorted(cu_seqlens[1:].long(), slots, right=True)
    first, last = document.view(blocks, FLEX_BLOCK)[:, 0], document.view(blocks, FLEX_BLOCK)[:, -1]
    overlap = (first[:, None] <= last) & (first <= last[:, None])
    one = (first == last)[:, None] & (first == last) & (first[:, None] == first)
    if total % FLEX_BLOCK:
        # The last block runs past the tokens: only the mask may say where it ends.
        one[-1] = one[:, -1] = False

    def same_document(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return document[q_index] == document[k_index]

    return BlockMask.from_kv_blocks(
        *_ordered(overlap & ~one),
        *_ordered(one),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=same_document,
        seq_lengths=(total, total),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """bool [rows, cols] -> numbers [1, 1, rows] and indices [1, 1, rows, cols] with the True ones first."""
    indices = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], indices.int()[None, None]


@lru_cache(maxsize=1)
def _flex_kernel() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """fp32, fp16 or bf16 on CUDA; compiled at the first call."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, T, head_dim]
    return _flex_kernel()(q, k, v, block_mask=mask)[0].transpose(0, 1)
