"""The cost of a setting on this machine: throughput, latency of a single image, and memory.

Images are blank, because the time does not depend on their content, and already on the device; neither
decoding nor the copy is included.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from packvit.data import EvalSet, cut_image
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT
from packvit.packing import PackedBatch, View

COSTS = ("images_per_s", "latency_ms_p50", "latency_ms_p99", "latency_tokens", "memory_mb")
SAMPLED = 512  # images of the set whose sizes are looked at
BATCHES = 5  # passes of a full batch that are timed, after one that is not
# Latencies come in rounds over all settings, so that what else the machine does meets all of them alike; each
# setting's first pass in a round is not timed.
ROUNDS, PASSES = 10, 10
SECONDS = 1.0  # of latencies for a setting, after which rounds have a single timed pass


@dataclass(frozen=True)
class Trial:
    """The batches that are run at a setting.

    Args:
        one: a batch of one image with the median number of tokens.
        several: a full batch.
        latencies: seconds of each timed pass of `one`.
    """

    one: PackedBatch
    several: PackedBatch
    latencies: list[float] = field(default_factory=list)


def measure_costs(
    model: PackedViT,
    images: EvalSet,
    settings: Sequence[Setting],
    tokens: int,
    autocast: AbstractContextManager,
) -> list[dict[str, Any]]:
    """The costs of each setting's row of results.json, on the model's device.

    Returns:
        images_per_s: of a batch of about `tokens` tokens, median pass. latency_ms_p50, latency_ms_p99: of one
        image with the median number of tokens, latency_tokens. memory_mb: peak memory that PyTorch allocated
        for that batch and the model, in 10**6 bytes; None on a CPU, where it cannot be separated from the
        rest of the process.
    """
    device = next(model.parameters()).device

    def run(batch: PackedBatch) -> None:
        with torch.inference_mode(), autocast:
            model(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    trials = [make_trial(images, setting, tokens, device) for setting in settings]
    costs = []
    for trial in trials:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times = time_passes(lambda batch=trial.several: run(batch), BATCHES)
        memory = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
        costs.append({"images_per_s": trial.several.num_images / percentile(times, 0.5), "memory_mb": memory})
    for _ in range(ROUNDS):
        for trial in trials:
            passes = PASSES if sum(trial.latencies) < SECONDS else 1
            trial.latencies.extend(time_passes(lambda batch=trial.one: run(batch), passes))
    for cost, trial in zip(costs, trials, strict=True):
        cost["latency_ms_p50"] = 1e3 * percentile(trial.latencies, 0.5)
        cost["latency_ms_p99"] = 1e3 * percentile(trial.latencies, 0.99)
        cost["latency_tokens"] = trial.one.stats().tokens
    return [{name: cost[name] for name in COSTS} for cost in costs]


def make_trial(images: EvalSet, setting: Setting, tokens: int, device: torch.device) -> Trial:
    """Blank images of the sizes that the set's images have at a setting."""
    step = max(1, len(images.headers) // SAMPLED)
    views = [setting.view(header.native_size) for header in images.headers[::step]]
    middle = sorted(views, key=lambda view: view.num_tokens)[len(views) // 2]
    return Trial(blank_batch([middle]).to(device), blank_batch(fill(views, tokens)).to(device))


def fill(views: Sequence[View], tokens: int) -> list[View]:
    """Views of at most `tokens` tokens in total, repeated if there are too few; at least one."""
    chosen, used = [views[0]], views[0].num_tokens
    while used + (view := views[len(chosen) % len(views)]).num_tokens <= tokens:
        chosen.append(view)
        used += view.num_tokens
    return chosen


def blank_batch(views: Sequence[View]) -> PackedBatch:
    """Blank images in one sequence, in host memory."""
    images = [
        cut_image(np.zeros((view.height, view.width, 3), np.uint8), view, (view.box[2], view.box[3]))
        for view in views
    ]
    return PackedBatch.build([images], sum(view.num_tokens for view in views))


def time_passes(run: Callable[[], None], number: int) -> list[float]:
    """Seconds of each of so many passes, after a warm-up pass."""
    run()
    times = []
    for _ in range(number):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return times


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
