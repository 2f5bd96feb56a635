"""Checkpoints: everything a run needs to resume, bit for bit, in a folder that appears whole or not at all.

`step-00000100/` holds `state/` (torch.distributed.checkpoint: the engine's tensors; each rank writes its
part, and any number of ranks can read it), `progress.json` (the state of all other parts of the run), a
loadable `model.safetensors` with its `config.json` as in a finished run, and hashes of all these files. It is
written under another name and renamed when all of it is on the disk, so a kill never damages the previous
one.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save, save

from packvit.common.files import sync
from packvit.common.ranks import Ranks
from packvit.train.step.integrity import seal, tensor_names
from packvit.train.step.kept import (
    PROGRESS,
    CheckpointConfig,
    find_checkpoints,
    is_kept,
    name_of,
    set_aside,
    step_of,
)
from packvit.train.step.step import Engine

VERSION = 3
ROOM = 1.02  # bytes of a checkpoint on the disk over those of its tensors
MARGIN = 1 << 20  # bytes; a disk with less room is full


class Part(Protocol):
    """A part of a run that has a state besides the engine's tensors."""

    def state_dict(self) -> dict[str, Any]:
        """The state, JSON-serialisable; every rank calls it, and the main rank's is kept."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore a state that `state_dict` returned, on any number of ranks.

        Raises:
            ValueError: the state does not belong to this run.
        """
        ...


class Elsewhere(Protocol):
    """Another place that gets each checkpoint; every rank calls every method alike.

    Attributes:
        keeper: whether this rank tidies the folder of checkpoints.
    """

    keeper: bool

    def send(self, step: int, partial: Path, /) -> Any:
        """Send this rank's files of a checkpoint; called in a thread where checkpoints are written in one."""
        ...

    def publish(self, sent: Any, /) -> None:
        """Complete there what `send` of all ranks has sent, when it is complete here."""
        ...


@dataclass
class Pending:
    """A checkpoint that is still being written in the background; `written` gives what `send` gave."""

    step: int
    written: Future


class Checkpointer:
    """Writes checkpoints to `folder`, reads them, and removes old ones; every rank calls every method alike.

    With `train.async_checkpoints` a save copies the state to host memory and returns; a thread writes it
    while training continues. At most one is written at a time.

    Args:
        parts: the parts of the run by their names in progress.json.
        elsewhere: where checkpoints go, too.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        ranks: Ranks,
        engine: Engine,
        parts: Mapping[str, Part],
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.ranks = ranks
        self.engine = engine
        self.parts = parts
        self.elsewhere = elsewhere
        self.keeper = ranks.is_main if elsewhere is None else elsewhere.keeper
        self.pending: Pending | None = None
        self.resumed_from = ""  # see find_resume
        self.saved = 0  # the step of the newest checkpoint
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.group: dist.ProcessGroup | None = None
        if config.async_checkpoints and ranks.world_size > 1:
            # Two threads in one group would take each other's messages.
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self.group = group

    def save(self, step: int) -> None:
        """Write `folder`/step-XXXXXXXX.

        Raises:
            OSError: there is no space for it, or it cannot be written; earlier checkpoints stay unchanged.
        """
        self.wait()
        self.saved = step
        partial = self.folder / f"partial-{step:08d}"
        whole, heads, state = self.engine.whole(), self.engine.whole_heads(), self.engine.state_dict()
        kept = (whole.state_dict(), *heads, named_tensors(state))
        self._check_room(tensor for tensors in kept for tensor in tensors.values())
        states = {name: part.state_dict() for name, part in self.parts.items()}
        if self.keeper:
            shutil.rmtree(partial, ignore_errors=True)
        if self.ranks.is_main:
            with unwritten(partial):
                self.engine.module.save(whole, heads, partial)
                notes = {"version": VERSION, "step": step, "ranks": self.ranks.world_size, **states}
                notes |= {"resumed_from": self.resumed_from}
                (partial / PROGRESS).write_text(json.dumps(notes))
        self.ranks.barrier()
        expect_one_process()
        if not self.config.async_checkpoints:
            with unwritten(partial):
                save(state, checkpoint_id=partial / "state")
            self._finish(step, self._seal(partial, step))
            return
        response = async_save(state, checkpoint_id=partial / "state", process_group=self.group)
        assert not isinstance(response, AsyncSaveResponse)

        def end() -> Any:
            with unwritten(partial):
                response.result()
            return self._seal(partial, step)

        self.pending = Pending(step, self.thread.submit(end))

    def _check_room(self, tensors: Iterable[Tensor]) -> None:
        """Refuse to begin what cannot be ended; a tensor that is cut counts whole."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < size * ROOM:
            raise OSError(
                f"no space for a checkpoint in {self.folder}: it takes {size * ROOM / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free; the same command resumes from the previous checkpoint"
            )

    def _seal(self, partial: Path, step: int) -> Any:
        """Bring what this rank has written to the disk, with its hashes, and send it."""
        rank = self.ranks.rank
        files = list((partial / "state").glob(f"__{rank}_*.distcp"))
        if self.ranks.is_main:
            whole = [path for path in partial.iterdir() if path.is_file()]
            files += [path for path in whole if not path.name.startswith("hashes-")]  # of other ranks
            files.append(partial / "state/.metadata")
        with unwritten(partial):
            seal(partial, files, rank)
        return None if self.elsewhere is None else self.elsewhere.send(step, partial)

    def tidy(self, aside: Iterable[Path]) -> None:
        """Rename the checkpoints that the run does not continue from, and remove incomplete ones."""
        if self.keeper:
            for path in aside:
                set_aside(path)
            for path in self.folder.glob("partial-*"):
                shutil.rmtree(path)

    def load(self, path: Path) -> None:
        """Restore the engine's tensors from a checkpoint, in place; see Resume for everything else.

        Raises:
            ValueError: the checkpoint is damaged, or lacks a tensor that is trained now.
        """
        state = self.engine.state_dict()
        expect_one_process()
        try:
            there = tensor_names(path / "state/.metadata")
            missing = sorted(name for name in named_tensors(state) if name not in there)
            if not missing:
                load(state, checkpoint_id=path / "state")
        except (CheckpointException, OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)})") from error
        if missing:
            raise ValueError(
                f"{path} has no {missing[0]}: what optim.freeze froze then has no state to resume from; "
                f"resume with the same, or start another run with --train.init {path}"
            )
        self.engine.load_state_dict(state)

    def poll(self) -> None:
        """Finish a checkpoint that was written in the background as soon as all ranks have; cheap."""
        if self.pending is not None and all(self.ranks.gather(self.pending.written.done())):
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is written in the background.

        Raises:
            OSError, RuntimeError: it could not be written.
        """
        if self.pending is not None:
            step, written = self.pending.step, self.pending.written
            self.pending = None
            self._finish(step, written.result())

    def _finish(self, step: int, sent: Any) -> None:
        self.ranks.barrier()
        if self.keeper:
            target = self.folder / name_of(step)
            if target.exists():
                set_aside(target)
            os.replace(self.folder / f"partial-{step:08d}", target)
            sync(self.folder)
            found = find_checkpoints(self.folder)
            for old in found:
                if not is_kept(step_of(old), [step_of(path) for path in found], self.config):
                    shutil.rmtree(old)
        self.ranks.barrier()
        if self.elsewhere is not None:
            self.elsewhere.publish(sent)


def expect_one_process() -> None:
    """Silence torch's warning about saving from a single process, which is intended; other threads warn,
    too."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


@contextmanager
def unwritten(path: Path) -> Iterator[None]:
    """Name the checkpoint that cannot be written, and why, in one sentence.

    Raises:
        OSError: instead of the libraries' errors, some of which are not an Exception.
    """
    try:
        yield
    except (CheckpointException, SafetensorError, OSError, RuntimeError) as error:
        full = shutil.disk_usage(path.parent).free < MARGIN
        reason = "no space left on the disk" if full else first_line(error)
        raise OSError(
            f"{path} could not be written ({reason}); the same command resumes from the previous checkpoint"
        ) from error


def first_line(error: BaseException) -> str:
    """The message of an error, without the tracebacks that follow it."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def named_tensors(state: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a nested state, by the names that torch.distributed.checkpoint gives them."""
    found = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            found |= named_tensors(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
