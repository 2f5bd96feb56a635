"""The checkpoints of a run by name: which there are, and which stay."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHECKPOINTS = "checkpoints"  # the folder of a run that has them
PROGRESS = "progress.json"  # the file without which a folder is no checkpoint


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept; part of `train.*`.

    Args:
        checkpoint_every: steps between checkpoints; the last step always saves one.
        keep_checkpoints: number of recent checkpoints to keep.
        keep_every: also keep checkpoints whose step is a multiple of this; 0 keeps no others.
        async_checkpoints: write checkpoints in the background, from a copy in host memory.
        resume_from: resume from this checkpoint, such as step-100, instead of the newest; later ones are
            renamed. A run that has already resumed from it continues from its newest checkpoint.
    """

    checkpoint_every: int = field(default=500, metadata={"resume": "free"})
    keep_checkpoints: int = field(default=3, metadata={"resume": "free"})
    keep_every: int = field(default=0, metadata={"resume": "free"})
    async_checkpoints: bool = field(default=False, metadata={"resume": "free"})
    resume_from: str = field(default="", metadata={"resume": "free"})

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        if self.keep_every < 0:
            raise ValueError(f"train.keep_every={self.keep_every} must not be negative")


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint that must no longer count as the newest; returns its new path."""
    target = checkpoint.with_name(
        aside_name(checkpoint.name, lambda name: checkpoint.with_name(name).exists())
    )
    os.replace(checkpoint, target)
    return target


def aside_name(checkpoint: str, is_taken: Callable[[str], bool]) -> str:
    """The first name for a checkpoint that is set aside which is not taken."""
    number = 0
    while is_taken(name := f"aside-{checkpoint}-{number}"):
        number += 1
    return name


def find_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def name_of(step: int) -> str:
    """The name of the checkpoint that is written after a step."""
    return f"step-{step:08d}"


def is_kept(step: int, steps: Sequence[int], config: CheckpointConfig) -> bool:
    """Whether the checkpoint of a step stays, among those of `steps`, in their order."""
    kept = config.keep_every > 0 and step % config.keep_every == 0
    return kept or step in steps[-config.keep_checkpoints :]


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))
