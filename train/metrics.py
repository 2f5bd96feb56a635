"""What a run reports: a window of steps summed up, written to metrics.jsonl."""

import json
import math
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packvit.packing import BatchStats
from packvit.train.distributed import Ranks
from packvit.train.groups import ImageFacts, Means, resolution_name

# Dense bf16 peak in TFLOP/s by device name, from the vendor's data sheets.
PEAK_TFLOPS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "GB200": 2500.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
}


def peak_tflops(device: torch.device, stated: float | None) -> float | None:
    """The device's peak in TFLOP/s: as stated, from the table, or None where it is unknown."""
    if stated is not None or device.type != "cuda":
        return stated
    name = torch.cuda.get_device_name(device)
    # "L4" is also the start of "L40" and "B200" the end of "GB200": the longest match is the device.
    matches = [part for part in PEAK_TFLOPS if part in name]
    return PEAK_TFLOPS[max(matches, key=len)] if matches else None


@dataclass
class Window:
    """Sums over the steps since the last logged one, on this rank."""

    batches: BatchStats = field(default_factory=lambda: BatchStats(0, 0, 0, 0, 0))
    flops: float = 0.0
    wait: float = 0.0
    loss: float = 0.0
    loss_images: int = 0
    drop_rate: float = 0.0
    loss_by_patch_size: Means = field(default_factory=Means)
    loss_by_resolution: Means = field(default_factory=Means)
    drop_rate_by_resolution: Means = field(default_factory=Means)
    start: float = field(default_factory=time.perf_counter)

    def add_batch(self, stats: BatchStats, flops: float, wait: float) -> None:
        """Count a batch: its stats, the FLOPs of training on it and the seconds spent waiting for it."""
        self.batches += stats
        self.flops += flops
        self.wait += wait

    def add_step(self, facts: ImageFacts, losses: np.ndarray | None) -> None:
        """Count the images of a step.

        Args:
            losses: [N], each image's loss; None if the step was left out.
        """
        self.drop_rate += float(facts.drop_rate.sum())
        self.drop_rate_by_resolution.add(facts.resolution, facts.drop_rate)
        if losses is not None:
            self.loss += float(losses.sum(dtype=np.float64))
            self.loss_images += len(losses)
            self.loss_by_patch_size.add(facts.patch_size, losses)
            self.loss_by_resolution.add(facts.resolution, losses)

    def summary(self, ranks: Ranks, peak: float | None) -> dict[str, Any]:
        """Rates and means over all ranks.

        `mfu` is None where the peak is unknown, `loss` where no step of the window counted.
        """
        seconds = time.perf_counter() - self.start
        b = self.batches
        images, tokens, slots, sequences, flops, wait, loss, loss_images, drop_rate = ranks.sum(
            [
                b.images,
                b.tokens,
                b.slots,
                b.sequences,
                self.flops,
                self.wait,
                self.loss,
                self.loss_images,
                self.drop_rate,
            ]
        )
        by_resolution = self.loss_by_resolution.over(ranks)
        drop_by_resolution = self.drop_rate_by_resolution.over(ranks)
        return {
            "loss": loss / loss_images if loss_images else None,
            "loss_by_patch_size": {str(p): mean for p, mean in self.loss_by_patch_size.over(ranks).items()},
            "loss_by_resolution": {resolution_name(r): mean for r, mean in by_resolution.items()},
            "drop_rate": drop_rate / max(1, images),
            "drop_rate_by_resolution": {resolution_name(r): mean for r, mean in drop_by_resolution.items()},
            "images_per_s": images / seconds,
            "tokens_per_s": tokens / seconds,
            "padding_fraction": 1 - tokens / max(1, slots),
            "images_per_sequence": images / max(1, sequences),
            "data_wait_fraction": wait / ranks.world_size / seconds,
            "mfu": flops / seconds / (peak * 1e12 * ranks.world_size) if peak else None,
            "memory_gb": max(ranks.gather(peak_memory(ranks.device))) / 1e9,
        }


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors on a GPU took since the start; on a CPU, that this process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class JsonLines:
    """A file of one JSON object a line, each with its `step`; what a killed run wrote too much is cut off.

    Args:
        path: made if missing.
        step: lines of later steps are removed, because the run repeats those steps.
        write: False writes nothing; for all ranks but one.
    """

    def __init__(self, path: Path, step: int, write: bool = True) -> None:
        self.path = path
        self.enabled = write
        if not write:
            return
        kept = [line for line in read_json_lines(path) if line["step"] <= step] if path.exists() else []
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, path)

    def write(self, line: dict) -> None:
        """Append one line."""
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps(known(line), allow_nan=False) + "\n")


def known(value: Any) -> Any:
    """The same with None for each number that is not finite, as JSON has none of them."""
    if isinstance(value, dict):
        return {name: known(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [known(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json_lines(path: Path) -> list[dict]:
    """All complete lines; a last line that a kill cut short is left out.

    Raises:
        ValueError: a line is no JSON; names the file and the line.
    """
    found = []
    for number, line in enumerate(path.read_text().split("\n")[:-1], 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is damaged ({error})") from error
    return found
