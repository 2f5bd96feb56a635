"""What a setting costs on this machine: throughput, latency of a single image, and memory.

Images are blank, as the time does not depend on what they show, and lie on the device; neither decoding nor
the copy is counted.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from packvit.data import EvalSet
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT
from packvit.packing import PackedBatch, PackedImage, View

COSTS = ("images_per_s", "latency_ms_p50", "latency_ms_p99", "latency_tokens", "memory_mb")
SAMPLED = 512  # images of the set whose sizes are looked at
WARM_UP = 5  # passes before latency is measured; one before throughput
LATENCIES, BATCHES = 100, 5  # passes that are timed, and fewer where they take
SECONDS = 1.0  # longer than this in all, but at least LEAST of them
LEAST = 3


def measure_cost(
    model: PackedViT, images: EvalSet, setting: Setting, tokens: int, autocast: AbstractContextManager
) -> dict[str, Any]:
    """The costs of a row of results.json, on the model's device.

    Returns:
        images_per_s: of a batch of about `tokens` tokens, median pass. latency_ms_p50, latency_ms_p99: of one
        image with the median number of tokens, latency_tokens. memory_mb: peak of what PyTorch allocated for
        that batch and the model, in 10**6 bytes; None on a CPU, where nothing tells it from the rest of the
        process.
    """
    device = next(model.parameters()).device
    step = max(1, len(images.headers) // SAMPLED)
    views = [setting.view(header.native_size) for header in images.headers[::step]]
    middle = sorted(views, key=lambda view: view.num_tokens)[len(views) // 2]
    one, several = (blank_batch(some).to(device) for some in ([middle], fill(views, tokens)))

    def run(batch: PackedBatch) -> Callable[[], Any]:
        def forward() -> Any:
            with torch.inference_mode(), autocast:
                return model(batch)

        return forward

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = time_passes(run(several), device, 1, BATCHES)
    memory = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    latencies = time_passes(run(one), device, WARM_UP, LATENCIES)
    return {
        "images_per_s": several.num_images / percentile(times, 0.5),
        "latency_ms_p50": 1e3 * percentile(latencies, 0.5),
        "latency_ms_p99": 1e3 * percentile(latencies, 0.99),
        "latency_tokens": middle.num_tokens,
        "memory_mb": memory,
    }


def fill(views: Sequence[View], tokens: int) -> list[View]:
    """Views, again from the first one where they are too few, of at most `tokens` tokens; at least one."""
    chosen, used = [views[0]], views[0].num_tokens
    while used + (view := views[len(chosen) % len(views)]).num_tokens <= tokens:
        chosen.append(view)
        used += view.num_tokens
    return chosen


def blank_batch(views: Sequence[View]) -> PackedBatch:
    """Blank images in one sequence, in host memory."""
    images = [
        PackedImage(
            {view.cell: np.zeros((view.num_cells, 3 * math.prod(view.cell)), np.uint8)},
            np.stack(np.divmod(np.arange(view.num_cells), view.grid[1]), 1).astype(np.int32),
            view.grid,
            view.cell,
            (view.box[2], view.box[3]),
        )
        for view in views
    ]
    return PackedBatch.build([images], sum(view.num_tokens for view in views))


def time_passes(run: Callable[[], Any], device: torch.device, warm_up: int, most: int) -> list[float]:
    """Seconds of each pass, after some that are not timed; one that runs on a GPU is waited for."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warm_up):
        run()
    wait()
    times: list[float] = []
    while len(times) < most and (len(times) < LEAST or sum(times) < SECONDS):
        began = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - began)
    return times


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
