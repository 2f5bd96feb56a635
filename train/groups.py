"""Means over images, in all and by group: by patch size and by resolution.

The groups of resolution are the same in every run, so that runs can be compared. Their bounds are 9 and 13
times powers of two, which lie away from the resolutions that people choose: the grids of a fixed resolution
are a little larger or smaller, and should not fall into two groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from packvit.packing import PackedBatch
from packvit.train.distributed import Ranks

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
    kept = np.concatenate([batch.image_lengths().numpy() for batch in batches])
    resolution = np.searchsorted(BOUNDS, np.sqrt(cells) * patch_size, side="right")
    return ImageFacts(patch_size, resolution, 1 - kept / cells)


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
