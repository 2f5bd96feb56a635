"""Checkpoints: everything a run needs to go on, bit for bit, in a folder that appears whole or not at all.

`step-00000100/` holds `state/` (torch.distributed.checkpoint: the engine's tensors; each rank writes its
part, and any number of ranks reads it), `progress.json` (the state of all other parts of the run) and, like a
finished run, a loadable `model.safetensors` with its `config.json`. It is written under another name and
renamed when complete, so a kill never harms the one before.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save, save

from packvit.common.ranks import Ranks
from packvit.models import save_model
from packvit.train.step.step import Engine

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept; of `train.*`.

    Args:
        checkpoint_every: steps between checkpoints; the last step always saves one.
        keep_checkpoints: number of recent checkpoints to keep.
        keep_every: also keep checkpoints of steps that it divides; 0 keeps none of them.
        async_checkpoints: write checkpoints in the background, from a copy in host memory.
    """

    checkpoint_every: int = field(default=500, metadata={"resume": "free"})
    keep_checkpoints: int = field(default=3, metadata={"resume": "free"})
    keep_every: int = field(default=0, metadata={"resume": "free"})
    async_checkpoints: bool = field(default=False, metadata={"resume": "free"})

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        if self.keep_every < 0:
            raise ValueError(f"train.keep_every={self.keep_every} must not be negative")


class Part(Protocol):
    """Something of a run that has a state beside the engine's tensors."""

    def state_dict(self) -> dict[str, Any]:
        """The state, JSON-serialisable; every rank calls it, and the main rank's is kept."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a state that `state_dict` gave, on whatever number of ranks.

        Raises:
            ValueError: the state does not belong to this run.
        """
        ...


@dataclass
class Pending:
    """A checkpoint that is still being written in the background."""

    step: int
    written: Future


class Checkpointer:
    """Writes checkpoints to `folder`, reads them, and removes old ones; every rank calls every method alike.

    With `train.async_checkpoints` a save copies the state to host memory and returns; a thread writes it
    while training goes on. At most one is under way.

    Args:
        parts: by the name that each has in progress.json.
    """

    def __init__(
        self, folder: Path, config: CheckpointConfig, ranks: Ranks, engine: Engine, parts: Mapping[str, Part]
    ) -> None:
        self.folder = folder
        self.config = config
        self.ranks = ranks
        self.engine = engine
        self.parts = parts
        self.pending: Pending | None = None
        self.group: dist.ProcessGroup | None = None
        if config.async_checkpoints and ranks.world_size > 1:
            # Two threads in one group would take each other's messages.
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self.group = group

    def save(self, step: int) -> None:
        """Write `folder`/step-XXXXXXXX."""
        self.wait()
        partial = self.folder / f"partial-{step:08d}"
        whole = self.engine.whole()
        states = {name: part.state_dict() for name, part in self.parts.items()}
        if self.ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            save_model(whole, partial)
            notes = {"version": VERSION, "step": step, **states}
            (partial / "progress.json").write_text(json.dumps(notes))
        self.ranks.barrier()
        expect_one_process()
        state = self.engine.state_dict()
        if not self.config.async_checkpoints:
            save(state, checkpoint_id=partial / "state")
            self._finish(step)
            return
        written = async_save(state, checkpoint_id=partial / "state", process_group=self.group)
        assert not isinstance(written, AsyncSaveResponse)
        self.pending = Pending(step, written)

    def load(self, path: Path) -> None:
        """Restore the engine's tensors from a checkpoint, in place; see `load_parts` for all else.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        state = self.engine.state_dict()
        expect_one_process()
        try:
            load(state, checkpoint_id=path / "state")
        except (CheckpointException, OSError) as error:
            raise damaged(path, error) from error
        self.engine.load_state_dict(state)

    def poll(self) -> None:
        """Finish a checkpoint that was written in the background as soon as all ranks have; cheap."""
        if self.pending is not None and all(self.ranks.gather(self.pending.written.done())):
            self.wait()

    def wait(self) -> None:
        """Wait for what is written in the background.

        Raises:
            OSError, RuntimeError: it could not be written.
        """
        if self.pending is not None:
            step, written = self.pending.step, self.pending.written
            self.pending = None
            written.result()
            self._finish(step)

    def _finish(self, step: int) -> None:
        self.ranks.barrier()
        if self.ranks.is_main:
            target = self.folder / f"step-{step:08d}"
            shutil.rmtree(target, ignore_errors=True)
            os.replace(self.folder / f"partial-{step:08d}", target)
            for old in find_checkpoints(self.folder)[: -self.config.keep_checkpoints]:
                if not self.config.keep_every or step_of(old) % self.config.keep_every:
                    shutil.rmtree(old)
        self.ranks.barrier()


def load_parts(path: Path, parts: Mapping[str, Part]) -> None:
    """Restore some parts of a run from a checkpoint, in their order.

    Raises:
        ValueError: the checkpoint is damaged, of another version, or does not belong to this run.
    """
    try:
        notes = json.loads((path / "progress.json").read_text())
        version = notes["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    if version != VERSION:
        raise ValueError(f"{path}: version {version}, this packvit reads {VERSION}")
    for name, part in parts.items():
        part.load_state_dict(notes[name])


def expect_one_process() -> None:
    """Saving from a single process is meant; torch warns of it, also from its own threads."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def damaged(path: Path, error: BaseException) -> ValueError:
    """What to raise when a checkpoint cannot be read."""
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ValueError(f"{path} is damaged ({reason}): remove it to go on from the checkpoint before")


def find_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))
