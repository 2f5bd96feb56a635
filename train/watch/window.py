"""The report of a run: sums over a window of steps, in total and by groups of images.

The groups of resolution are the same in every run, so that runs can be compared. Their bounds are 9 and 13
times powers of two, which are far from usual resolutions, because the grids of a fixed resolution are a
little larger or smaller and should not fall into two groups.
"""

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from packvit.common.ranks import Ranks
from packvit.data import LoadedBatch
from packvit.models import PackedText
from packvit.packing import BatchStats, ImageFacts
from packvit.train.step.interface import StepResult
from packvit.train.watch.peak import Peaks

BOUNDS = sorted(base << power for base in (9, 13) for power in range(1, 11))


def resolution_groups(resolution: np.ndarray) -> np.ndarray:
    """Resolutions in pixels [N] -> int64 [N], the number of each one's group."""
    return np.searchsorted(BOUNDS, resolution, side="right")


def resolution_name(group: int) -> str:
    """The name of a group of resolutions: its bounds in pixels, such as "144-208"."""
    low = BOUNDS[group - 1] if group else 0
    return f"{low}-{BOUNDS[group]}" if group < len(BOUNDS) else f"{low}-"


@dataclass
class Taken:
    """The batches that a rank takes for one step.

    Args:
        batches: in the run's order.
        stats: counts of all of them.
        texts: packed texts that belong to them.
        texts_cut: number of texts that were too long.
        flops: FLOPs of training on them.
        wait: seconds spent waiting for them.
        stuck: whether the run was asked to end while it waited for the next one.
        depth: number of blocks that run in the step; None: all, as in every step.
    """

    batches: list[LoadedBatch] = field(default_factory=list)
    stats: BatchStats = field(default_factory=BatchStats)
    texts: int = 0
    texts_cut: int = 0
    flops: float = 0.0
    wait: float = 0.0
    stuck: bool = False
    depth: int | None = None

    def add(self, loaded: LoadedBatch, flops: float) -> None:
        """Take one more batch; training on it costs `flops`."""
        self.batches.append(loaded)
        self.stats += loaded.batch.stats()
        self.flops += flops
        for target in loaded.batch.targets.values():
            if isinstance(target, PackedText):
                self.texts += target.num_texts
                self.texts_cut += target.cut

    def counts(self) -> tuple[int, int, float]:
        """Images, tokens and FLOPs."""
        return self.stats.images, self.stats.tokens, self.flops


class Came(NamedTuple):
    """The results of a step, in host memory.

    step: its number.
    facts: facts about its batches on this rank.
    losses: float32 [N], losses of their images; None if the step was skipped.
    grad_norm: before clipping, over all ranks; None if it was not finite and the step was skipped.
    depth: number of blocks that ran; None: all, as in every step.
    reported: what the task reported, by name; empty if the step was skipped.
    """

    step: int
    facts: Sequence[ImageFacts]
    losses: np.ndarray | None
    grad_norm: float | None
    depth: int | None = None
    reported: Mapping[str, np.ndarray] = MappingProxyType({})


class Coming:
    """The results of a step on their way to the host: the device copies them when it has computed them.

    Args:
        step, facts, depth: see Came.
        result: result of the step, on its device.
    """

    def __init__(
        self, step: int, facts: Sequence[ImageFacts], result: StepResult, depth: int | None = None
    ) -> None:
        self.step, self.facts, self.depth = step, facts, depth
        self.losses, self.grad_norm = _start_copy(result.losses), _start_copy(result.grad_norm)
        self.reported = {name: _start_copy(values) for name, values in result.reported.items()}
        self.copied = torch.cuda.Event() if result.losses.is_cuda else None
        if self.copied is not None:
            self.copied.record()

    def read(self) -> Came:
        """The results; waits until the device has computed this step."""
        if self.copied is not None:
            self.copied.synchronize()
        norm = float(self.grad_norm)
        if not math.isfinite(norm):
            return Came(self.step, self.facts, None, None, self.depth)
        reported = {name: values.numpy() for name, values in self.reported.items()}
        return Came(self.step, self.facts, self.losses.numpy(), norm, self.depth, reported)


def _start_copy(tensor: Tensor) -> Tensor:
    """A copy in page-locked memory, where it may arrive later; a tensor of the host as it is."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


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
    steps: int = 0
    texts: int = 0
    texts_cut: int = 0
    flops: float = 0.0
    wait: float = 0.0
    loss: float = 0.0
    loss_images: int = 0
    drop_rate: float = 0.0
    grad_norm: float | None = None  # of the last step
    loss_by_patch_size: Means = field(default_factory=Means)
    loss_by_resolution: Means = field(default_factory=Means)
    drop_rate_by_resolution: Means = field(default_factory=Means)
    loss_by_depth: Means = field(default_factory=Means)
    has_depths: bool = False
    reported: dict[str, tuple[float, int]] = field(default_factory=dict)  # sums and counts
    start: float = field(default_factory=time.perf_counter)

    def add_batches(self, taken: Taken) -> None:
        """Count the batches of a step."""
        self.steps += 1
        self.batches += taken.stats
        self.texts += taken.texts
        self.texts_cut += taken.texts_cut
        self.flops += taken.flops
        self.wait += taken.wait
        self.has_depths |= taken.depth is not None

    def add_step(self, came: Came) -> None:
        """Count the images of a step."""
        columns = zip(*came.facts, strict=True)
        patch_size, resolution, drop_rate = (np.concatenate(column) for column in columns)
        losses, self.grad_norm = came.losses, came.grad_norm
        groups = resolution_groups(resolution)
        self.drop_rate += float(drop_rate.sum())
        self.drop_rate_by_resolution.add(groups, drop_rate)
        if losses is not None:
            self.loss += float(losses.sum(dtype=np.float64))
            self.loss_images += len(losses)
            self.loss_by_patch_size.add(patch_size, losses)
            self.loss_by_resolution.add(groups, losses)
            for name, values in came.reported.items():
                total, count = self.reported.get(name, (0.0, 0))
                self.reported[name] = total + float(values.sum(dtype=np.float64)), count + len(values)
            if came.depth is not None:
                self.loss_by_depth.add(np.full(len(losses), came.depth), losses)

    def summary(self, ranks: Ranks, peaks: Peaks) -> dict[str, Any]:
        """Rates and means over all ranks.

        A share of a peak is None if the peak is unknown, `loss` if no step of the window counted.
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
        texts, texts_cut = ranks.sum([self.texts, self.texts_cut])
        cut = {"texts_cut": texts_cut / texts} if texts else {}
        reported = {name: ranks.sum(self.reported[name]) for name in sorted(self.reported)}
        available = seconds * 1e12 * ranks.world_size  # of a peak's FLOPs
        by_resolution = self.loss_by_resolution.over(ranks)
        drop_by_resolution = self.drop_rate_by_resolution.over(ranks)
        by_depth = self.loss_by_depth.over(ranks).items() if self.has_depths else ()
        return {
            "loss": loss / loss_images if loss_images else None,
            "grad_norm": self.grad_norm,
            "loss_by_patch_size": {str(p): mean for p, mean in self.loss_by_patch_size.over(ranks).items()},
            "loss_by_resolution": {resolution_name(r): mean for r, mean in by_resolution.items()},
            "drop_rate": drop_rate / max(1, images),
            "drop_rate_by_resolution": {resolution_name(r): mean for r, mean in drop_by_resolution.items()},
            "images_per_s": images / seconds,
            "tokens_per_s": tokens / seconds,
            "padding_fraction": 1 - tokens / max(1, slots),
            "images_per_step": images / max(1, self.steps),
            "images_per_sequence": images / max(1, sequences),
            "data_wait_fraction": wait / ranks.world_size / seconds,
            "mfu": flops / (peaks.sheet * available) if peaks.sheet else None,
            "mfu_measured": flops / (peaks.measured * available) if peaks.measured else None,
            "memory_gb": max(ranks.gather(peak_memory(ranks.device))) / 1e9,
            **cut,
            **{name: total / count if count else None for name, (total, count) in reported.items()},
            **({"loss_by_depth": {str(depth): mean for depth, mean in by_depth}} if self.has_depths else {}),
        }


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes since the start: of tensors on a GPU; on a CPU, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
