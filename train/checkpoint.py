"""Checkpoints: everything a run needs to go on, bit for bit, in a folder that appears whole or not at all.

`step-00000100/` holds `state/` (torch.distributed.checkpoint: weights, moving average, optimizer; each rank
writes its part, and any number of ranks reads it), `progress.json` (counters, configuration and the data
streams' state) and, like a finished run, a loadable `model.safetensors` with its `config.json`. It is written
under another name and renamed when complete, so a kill never harms the one before.
"""

import json
import os
import re
import shutil
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save, save

from packvit.models import save_model
from packvit.train.config import TrainConfig
from packvit.train.distributed import Ranks
from packvit.train.engine import Engine

VERSION = 2


@dataclass
class Pending:
    """A checkpoint that is still being written in the background."""

    step: int
    written: Future


class Checkpointer:
    """Writes checkpoints to `folder` and removes old ones; every rank calls every method alike.

    With `train.async_checkpoints` a save copies the state to host memory and returns; a thread writes it
    while training goes on. At most one is under way.
    """

    def __init__(self, folder: Path, config: TrainConfig, ranks: Ranks) -> None:
        self.folder = folder
        self.config = config
        self.ranks = ranks
        self.pending: Pending | None = None

    def save(self, step: int, engine: Engine, progress: dict) -> None:
        """Write `folder`/step-XXXXXXXX.

        Args:
            progress: JSON-serialisable, the same on all ranks.
        """
        self.wait()
        partial = self.folder / f"partial-{step:08d}"
        whole = engine.whole()
        if self.ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            save_model(whole, partial)
            (partial / "progress.json").write_text(json.dumps({"version": VERSION, "step": step} | progress))
        self.ranks.barrier()
        expect_one_process()
        if not self.config.async_checkpoints:
            save(_state(engine), checkpoint_id=partial / "state")
            self._finish(step)
            return
        written = async_save(_state(engine), checkpoint_id=partial / "state")
        assert not isinstance(written, AsyncSaveResponse)
        self.pending = Pending(step, written)

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


def read_progress(path: Path) -> dict:
    """What `Checkpointer.save` was given as progress.

    Raises:
        ValueError: the file is damaged, or of another version.
    """
    try:
        progress = json.loads((path / "progress.json").read_text())
        version = progress["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    if version != VERSION:
        raise ValueError(f"{path}: version {version}, this packvit reads {VERSION}")
    return progress


def load_checkpoint(path: Path, engine: Engine) -> None:
    """Restore the engine in place; shapes are those that were saved, decay and the like stay as they are.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    state = _state(engine)
    settings = [[without_params(group) for group in o.param_groups] for o in engine.optimizers]
    expect_one_process()
    try:
        load(state, checkpoint_id=path / "state")
    except (CheckpointException, OSError) as error:
        raise damaged(path, error) from error
    set_state_dict(
        engine.student,
        engine.optimizers,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    for optimizer, groups in zip(engine.optimizers, settings, strict=True):
        for group, setting in zip(optimizer.param_groups, groups, strict=True):
            group.update(setting)


def expect_one_process() -> None:
    """Saving from a single process is meant; torch warns of it, also from its own threads."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def without_params(group: dict) -> dict:
    """The settings of an optimizer's parameter group."""
    return {name: value for name, value in group.items() if name != "params"}


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


def _state(engine: Engine) -> dict:
    weights, optim = get_state_dict(engine.student, engine.optimizers)
    state: dict[str, dict[str, Tensor] | dict] = {"model": weights, "optimizer": optim}
    if engine.average is not None:
        state["average"] = engine.average.state_dict()
    return state
