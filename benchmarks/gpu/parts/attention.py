"""Attention backends by the length of segments: time, rate, and deviation from float64."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpu.options import Options
from gpu.timing import best_seconds
from packvit.models import Segments, attention, choose_backend

BACKENDS = ("varlen", "xformers", "flex", "sdpa")
HEADS, HEAD_DIM = 12, 64
TOLERANCE = 0.03  # of the largest value; bf16 has 0.004


def equal_segments(total: int, length: int, device: torch.device) -> Tensor:
    """int32 offsets of segments of one length that fill `total` tokens."""
    return torch.arange(0, total + 1, length, dtype=torch.int32, device=device)


def forward_backward(qkv: list[Tensor], grad: Tensor, segments: Segments) -> list[Tensor]:
    """The output and the gradients of queries, keys and values."""
    out = attention(qkv[0], qkv[1], qkv[2], segments)
    return [out, *torch.autograd.grad(out, qkv, grad)]


def random_inputs(
    total: int, heads: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Queries, keys, values and an output's gradient, [total, heads, HEAD_DIM]."""
    torch.manual_seed(0)
    made = [torch.randn(total, heads, HEAD_DIM, device=device).to(dtype) for _ in range(4)]
    return [x.requires_grad_() for x in made[:3]], made[3]


def deviation(backend: str, length: int, device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference from float64 on the same rounded inputs, of output and gradients, over the largest
    value of each."""
    total = 2 * length
    offsets = equal_segments(total, length, device)
    qkv, grad = random_inputs(total, 2, device, dtype)
    got = forward_backward(qkv, grad, Segments.build(offsets, length, backend, total=total))
    exact = [x.detach().double().requires_grad_() for x in qkv]
    dense = Segments.build(offsets, length, "dense", total=total)
    expected = forward_backward(exact, grad.double(), dense)
    pairs = zip(got, expected, strict=True)
    return max(
        float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max()) for a, b in pairs
    )


def measure(backend: str, length: int, total: int, options: Options) -> dict[str, Any]:
    """Milliseconds, TFLOP/s and deviation of a layer's forward and backward pass."""
    dtype, device = torch.bfloat16, options.device
    offsets = equal_segments(total, length, device)
    qkv, grad = random_inputs(total, HEADS, device, dtype)
    segments = Segments.build(offsets, length, backend, total=total)
    seconds = best_seconds(
        lambda: forward_backward(qkv, grad, segments), device, 4, 2 if options.tiny else 10
    )
    # Two products forward; five backward, which computes the scores again.
    flops = 7 * 2 * total * length * HEADS * HEAD_DIM
    return {
        "ms": seconds * 1e3,
        "tflops": flops / seconds / 1e12,
        "deviation": deviation(backend, length, device, dtype),
    }


def try_backend(backend: str, length: int, total: int, options: Options) -> dict[str, Any]:
    """Its numbers; `not_measured` where it says that it cannot run, `error` where it should and fails."""
    try:
        choose_backend(backend, options.device, torch.bfloat16)
    except ValueError as reason:
        return {"not_measured": str(reason)}
    try:
        numbers = measure(backend, length, total, options)
    except Exception as problem:  # of a kernel or its compiler
        return {"error": f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"}
    if not numbers["deviation"] < TOLERANCE:
        numbers["error"] = f"differs from float64 by {numbers['deviation']:.1e}"
    return numbers


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """{"backend, length": numbers, or why there are none}."""
    lengths = (16, 64) if options.tiny else (64, 256, 1024, 4096)
    total = 128 if options.tiny else 65_536
    for backend in BACKENDS:
        for length in lengths:
            yield f"{backend}, {length}", try_backend(backend, length, total, options)
