"""What a run reports: a window of steps summed up, in all and by groups of images.

The groups of resolution are the same in every run, so that runs can be compared. Their bounds are 9 and 13
times powers of two, which lie away from the resolutions that people choose: the grids of a fixed resolution
are a little larger or smaller, and should not fall into two groups.
"""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from packvit.common.ranks import Ranks
from packvit.packing import BatchStats, PackedBatch

BOUNDS = sorted(base << power for base in (9, 13) for power in range(1, 11))


class ImageFacts(NamedTuple):
    """What the images of a step are grouped by, each [N].

    patch_size: int64, pixels. resolution: int64, the group's number. drop_rate: float64.
    """

    patch_size: np.ndarray
    resolution: np.ndarray
    drop_rate: np.ndarray


def image_facts(batches: Sequence[PackedBatch]) -> ImageFacts:
    """Of all images of some batches in host memory, in their order."""
    patch_size = np.concatenate([batch.patch_sizes.numpy() for batch in batches]).astype(np.int64)
    cells = np.concatenate([batch.grids.numpy() for batch in batches]).prod(1, dtype=np.int64)
    kept = np.concatenate([_kept_cells(batch) for batch in batches])
    resolution = np.searchsorted(BOUNDS, np.sqrt(cells) * patch_size, side="right")
    return ImageFacts(patch_size, resolution, 1 - kept / cells)


def _kept_cells(batch: PackedBatch) -> np.ndarray:
    """int64 [N], the cells that each image's kept tokens cover: their number in a uniform grid."""
    index = batch.image_index.numpy()
    covered = batch.extents.numpy().prod(1, dtype=np.int64)[index >= 0]
    return np.bincount(index[index >= 0], covered, batch.num_images).astype(np.int64)


def resolution_name(group: int) -> str:
    """Of a group of resolutions, in pixels: its bounds, as "144-208"."""
    low = BOUNDS[group - 1] if group else 0
    return f"{low}-{BOUNDS[group]}" if group < len(BOUNDS) else f"{low}-"


class Means:
    """Sums and counts of a value by group, on this rank."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[float, int]] = {}

    def add(self, groups: np.ndarray, values: np.ndarray) -> None:
        """Count `values` [N], each in its group, an int64 [N] from 0."""
        sums, counts = np.bincount(groups, values), np.bincount(groups)
        for group in np.flatnonzero(counts).tolist():
            total, count = self.sums.get(group, (0.0, 0))
            self.sums[group] = (total + float(sums[group]), count + int(counts[group]))

    def over(self, ranks: Ranks) -> dict[int, float]:
        """{group: mean over the images of all ranks}, smallest group first."""
        parts = ranks.gather(self.sums)
        means = {}
        for group in sorted({group for part in parts for group in part}):
            pairs = [part[group] for part in parts if group in part]
            means[group] = sum(total for total, _ in pairs) / sum(count for _, count in pairs)
        return means


@dataclass
class Window:
    """Sums over the steps since the last logged one, on this rank."""

    batches: BatchStats = field(default_factory=BatchStats)
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
