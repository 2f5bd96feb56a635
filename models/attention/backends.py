"""The attention backends by name, and where each of them can run."""

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from packvit.models.attention.cuda import (
    MAX_HEAD_DIM,
    attend_flex,
    attend_varlen,
    attend_xformers,
    prepare_flex,
    prepare_varlen,
    prepare_xformers,
    try_xformers,
)
from packvit.models.attention.sdpa import attend_sdpa, prepare_sdpa


def prepare_dense(cu_seqlens: Tensor, max_len: int, total: int) -> Tensor:
    """bool [T, T], True where two tokens share a segment."""
    document = torch.searchsorted(cu_seqlens[1:], torch.arange(total, device=cu_seqlens.device), right=True)
    return document[:, None] == document


def attend_dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The reference for tests: quadratic in T."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # [heads, T, head_dim]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


class Backend(NamedTuple):
    """prepare(cu_seqlens, max_len, total) -> plan; attend(q, k, v, plan) -> out."""

    prepare: Callable[[Tensor, int, int], Any]
    attend: Callable[[Tensor, Tensor, Tensor, Any], Tensor]


BACKENDS = {
    "varlen": Backend(prepare_varlen, attend_varlen),
    "xformers": Backend(prepare_xformers, attend_xformers),
    "flex": Backend(prepare_flex, attend_flex),
    "sdpa": Backend(prepare_sdpa, attend_sdpa),
    "dense": Backend(prepare_dense, attend_dense),
}


@lru_cache
def find_backend(name: str) -> Backend:
    """A backend by its name.

    Raises:
        ValueError: it is unknown; lists the known ones.
    """
    if name not in BACKENDS:
        raise ValueError(f"attention backend {name!r} is not one of auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]


@lru_cache
def choose_backend(backend: str, device: torch.device | str, dtype: torch.dtype, head_dim: int = 64) -> str:
    """The backend to use: `backend` itself if it can run, or for `auto` the usually fastest one that can run;
    `fastest_backend` measures instead.

    Args:
        backend: auto or a key of BACKENDS.
        device: where the tokens are.
        dtype: dtype of queries and keys; under autocast, autocast's dtype.
        head_dim: channels of one head.

    Raises:
        ValueError: the backend is unknown or cannot run here; says what to install or choose.
    """
    device = torch.device(device)
    if backend == "auto":
        return next(b for b in ("varlen", "xformers", "sdpa") if obstacle(b, device, dtype, head_dim) is None)
    find_backend(backend)
    reason = obstacle(backend, device, dtype, head_dim)
    if reason:
        raise ValueError(f"attention backend {backend!r} {reason}")
    return backend


def obstacle(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a backend cannot run here, as the end of a sentence; None if it can."""
    if backend in ("sdpa", "dense"):
        return None
    if device.type != "cuda":
        return f"needs a CUDA device, not {device.type}: use sdpa"
    if backend == "varlen":
        return _varlen_obstacle(device, dtype, head_dim)
    if dtype == torch.float64:
        return "has no float64 kernel: use sdpa"
    return _xformers_obstacle(device, dtype, head_dim) if backend == "xformers" else None


def _varlen_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, not {str(dtype).removeprefix('torch.')}: use autocast or sdpa"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or newer: use xformers or sdpa"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "needs torch >= 2.10: pip install -U torch"
    if head_dim > MAX_HEAD_DIM:
        return f"takes heads of at most {MAX_HEAD_DIM} channels, not {head_dim}: use xformers or sdpa"
    return None


@lru_cache
def _xformers_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Asks xformers itself: a build for another CUDA imports without an error and has no kernels."""
    if importlib.util.find_spec("xformers") is None:
        return "needs xformers: pip install 'packvit[xformers]'"
    try:
        try_xformers(device, dtype, head_dim)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return (
            f"is installed, but cannot compute here ({lines[0]}; see python -m xformers.info): "
            "install a build for this torch and CUDA, or use sdpa"
        )
    return None
