"""Find the fastest attention backend on this machine by measuring once.

`auto` has a fixed order of backends, but their speed depends on the GPU, the head size and the lengths of
segments. A measurement takes seconds, most of them for `flex` to compile, and is kept in `backends.json` in
the user's cache folder, so that a run resumed on the same machine normally uses the same backend. Lengths
near a power of two may be measured again, with another result.
"""

import json
import logging
import math
import os
import statistics
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.nn import attention as torch_attention

from packvit.common.files import cache_path
from packvit.models.attention.backends import choose_backend, obstacle
from packvit.models.attention.segments import Segments, attention

CANDIDATES = ("varlen", "flex", "xformers", "sdpa")
# They plan on the host and wait for the device in every batch: no match for varlen, however fast they are.
PLANNED = ("xformers", "sdpa")
WARM_UP, ROUNDS = 3, 7
FILE = "backends.json"  # in the cache folder

logger = logging.getLogger(__name__)
_chosen: dict[str, str] = {}  # by what `_key` says


def time_on_gpu(run: Callable[[], Any]) -> float:
    """Median time in milliseconds that the current GPU needs for `run`, after a warm-up."""
    for _ in range(WARM_UP):
        run()
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def measure_backends(
    device: torch.device | str,
    dtype: torch.dtype,
    heads: int,
    head_dim: int,
    lengths: Sequence[int],
    time: Callable[[Callable[[], Any]], float] = time_on_gpu,
) -> dict[str, float]:
    """Milliseconds that one layer's attention takes forward and backward, by backend, the fastest first.

    Backends that cannot run here are left out. The preparation for each batch is not measured.

    Args:
        device: where the tokens are.
        dtype: dtype of queries and keys; under autocast, autocast's dtype.
        heads, head_dim: number of heads and channels of one head.
        lengths: lengths of a batch's segments in tokens, at least one.
        time: function that times a call.
    """
    device = torch.device(device)
    total = sum(lengths)
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    q, k, v = (
        torch.randn(total, heads, head_dim, device=device, dtype=dtype, requires_grad=True) for _ in range(3)
    )
    times = {}
    able = [name for name in CANDIDATES if obstacle(name, device, dtype, head_dim) is None]
    for name in able:
        if name in PLANNED and "varlen" in able:
            continue
        try:
            segments = Segments.build(offsets, max(lengths), name, total=total)

            def run(segments: Segments = segments) -> Any:
                out = attention(q, k, v, segments)
                return torch.autograd.grad(out, (q, k, v), out.detach())

            times[name] = time(run)
        except Exception as error:
            logger.warning("attention backend %r is left out, as it fails here: %s", name, error)
    return dict(sorted(times.items(), key=lambda item: item[1]))


def fastest_backend(
    device: torch.device | str,
    dtype: torch.dtype,
    heads: int,
    head_dim: int,
    lengths: Sequence[int],
    measure: Callable[..., dict[str, float]] = measure_backends,
) -> str:
    """The backend that `measure_backends` finds the fastest; measured once for a machine and stored.

    On a CPU, where there is no choice, and if no backend could be measured, it is that of `auto`. The
    arguments are those of `measure_backends`.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return choose_backend("auto", device, dtype, head_dim)
    key = _key(device, dtype, heads, head_dim, lengths)
    kept = _read()
    name = _chosen.get(key) or kept.get(key, {}).get("backend")
    # What was installed then need not be installed now.
    if name not in CANDIDATES or obstacle(name, device, dtype, head_dim):
        times = measure(device, dtype, heads, head_dim, lengths)
        name = min(times, key=times.__getitem__, default=None)
        if name is None:
            return choose_backend("auto", device, dtype, head_dim)
        _write(kept | {key: {"backend": name, "ms": times}})
    _chosen[key] = name
    return name


def _key(device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, lengths: Sequence[int]) -> str:
    """What the choice depends on; of the lengths, all tokens and the mean segment of a token, to the nearest
    power of two, as batches of one run differ a little."""
    tokens = sum(lengths)
    mean = sum(length * length for length in lengths) / tokens
    flash = getattr(torch_attention, "current_flash_attention_impl", lambda: None)()
    parts = (
        torch.cuda.get_device_name(device),
        f"torch {torch.__version__}",
        flash or "FA2",
        str(dtype).removeprefix("torch."),
        f"{heads} heads of {head_dim}",
        f"2^{round(math.log2(tokens))} tokens in segments of 2^{round(math.log2(mean))}",
    )
    return ", ".join(parts)


def _read() -> dict[str, Any]:
    """What was measured before; nothing if the file is missing or damaged."""
    try:
        kept = json.loads(cache_path(FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in kept.items() if isinstance(v, dict)} if isinstance(kept, dict) else {}


def _write(kept: dict[str, Any]) -> None:
    """Replace the file whole, as other processes may read it; a folder that cannot be written is no error."""
    path = cache_path(FILE)
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps(kept, indent=1) + "\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        logger.info("the measured backend is not kept: %s", error)
