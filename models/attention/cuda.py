"""The backends with CUDA kernels, which all use the same segment offsets.

varlen is FlashAttention over flat tokens; xformers the memory-efficient kernel with a block-diagonal bias;
flex compiles a kernel for a document mask. Kernels are imported when they are first prepared.
"""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

FLEX_BLOCK = 128
MAX_HEAD_DIM = 256  # of FlashAttention, forward and backward


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

    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    return BlockDiagonalMask.from_seqlens(lengths, device=cu_seqlens.device)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor, bias: Any) -> Tensor:
    """Any floating dtype except float64, on CUDA."""
    from xformers.ops import memory_efficient_attention

    head_dim = q.shape[-1]
    q, k, v = (_pad_heads(x)[None] for x in (q, k, v))
    return memory_efficient_attention(q, k, v, attn_bias=bias, scale=head_dim**-0.5)[0, ..., :head_dim]


def try_xformers(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Forward and backward of two tiny segments.

    Raises:
        Exception: whatever xformers raises if it has no kernel for this.
    """
    _try(prepare_xformers, attend_xformers, device, dtype, head_dim)


def _try(
    prepare: Callable, attend: Callable, device: torch.device, dtype: torch.dtype, head_dim: int
) -> None:
    # The first forward pass may ask, in whatever mode it is.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        offsets = torch.arange(3, dtype=torch.int32, device=device) * 8
        q, k, v = (
            torch.zeros(16, 1, head_dim, dtype=dtype, device=device, requires_grad=True) for _ in range(3)
        )
        attend(q, k, v, prepare(offsets, 8, 16)).sum().backward()


def activate_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Let varlen and sdpa use the newest FlashAttention that is installed and works here, in this whole
    process.

    PyTorch includes FlashAttention 2; FA3 (compute capability 9.0) and FA4 (9.0 and 10.0) are separate
    packages that it can use instead. Each is tried forward and backward, because they load on any GPU.

    Returns:
        Its name, such as FA3, or None if PyTorch's own is used.
    """
    from torch.nn import attention

    if device.type != "cuda" or not hasattr(
        attention, "activate_flash_attention_impl"
    ):  # came after torch 2.10
        return None
    for name in sorted(attention.list_flash_attention_impls(), reverse=True):
        try:
            attention.activate_flash_attention_impl(name)
            _try(prepare_varlen, attend_varlen, device, dtype, head_dim)
        except Exception as error:
            logger.info("%s cannot be used: %s", name, error)
        else:
            return name
        if attention.current_flash_attention_impl() is not None:
            attention.restore_flash_attention_impl()
    return None


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
