"""Time on a device: the best of several rounds, each of several calls in a row."""

import time
from collections.abc import Callable

import torch


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(call: Callable[[], object], device: torch.device, rounds: int = 5, calls: int = 4) -> float:
    """Of one call, the host's part included: the best mean of a round; one round goes before, unmeasured.

    The rounds end when the device has done its work, so that its queue is neither empty nor full at the end.
    """
    times = []
    for _ in range(rounds + 1):
        wait(device)
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait(device)
        times.append((time.perf_counter() - began) / calls)
    return min(times[1:])


def effort(seconds: float, wanted: float = 1.0) -> int:
    """How many calls of so many seconds fill a round of `wanted` seconds; 1 to 50."""
    return max(1, min(50, round(wanted / max(seconds, 1e-6))))
