"""The rate of whole training steps by model, batch and compilation; of it and the peak comes MFU."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from gpu.batches import make_batch
from gpu.options import Options
from gpu.steps import Size, Trainer, make_trainer, model_config, plan
from gpu.timing import best_seconds, effort, wait
from packvit.packing import PackedBatch

BATCHES = 3  # of a size, which take turns


def measure(trainer: Trainer, batches: list[PackedBatch], device: torch.device) -> dict[str, Any]:
    """Milliseconds a step, TFLOP/s of useful arithmetic, images and tokens a second, GB of memory."""
    flops = sum(trainer.flops(batch) for batch in batches) / len(batches)
    placed = [batch.to(device) for batch in batches]

    def steps() -> None:
        for batch in placed:
            trainer.step(batch)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps()
    wait(device)
    began = time.perf_counter()
    steps()
    wait(device)
    seconds = best_seconds(steps, device, 3, effort(time.perf_counter() - began)) / len(batches)
    images = sum(batch.num_images for batch in batches) / len(batches)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return {
        "ms": seconds * 1e3,
        "tflops": flops / seconds / 1e12,
        "images_per_s": images / seconds,
        "tokens_per_s": batches[0].num_slots / seconds,
        "gb": memory,
    }


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """{"model, tokens, mode": numbers}; what does not fit into memory says so."""
    sizes = [Size(2, 64)] if options.tiny else [Size(8, 1024), Size(64, 1024)]
    # The cells that goals are about come first, should time be short.
    for mode in ("eager",) if options.tiny else ("compiled", "eager"):
        for name in ("B", "L", "S"):
            config = plan(model_config(name, options.tiny), compiled=mode == "compiled")
            trainer = make_trainer(config, options.device)
            for size in sizes:
                cell = f"{name}, {size.tokens}, {mode}"
                batches = [make_batch(size.rows, size.seq_len, seed=seed) for seed in range(BATCHES)]
                try:
                    yield cell, measure(trainer, batches, options.device)
                except torch.cuda.OutOfMemoryError:
                    yield cell, {"not_measured": "out of memory"}
            del trainer
            if options.device.type == "cuda":
                torch.cuda.empty_cache()
