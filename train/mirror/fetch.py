"""A run's folder in a store, brought to this machine before the run starts.

What is fetched is what a run goes on with: the newest checkpoint that is whole, the logs, the best model. A
copy that is here already stays as it is if the store has not changed since: it may be ahead of the store,
where the last of what was computed could not be sent.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from packvit.common.stores.copies import fetch_object
from packvit.evaluate import BEST
from packvit.models.text.tokenizer import FILES
from packvit.train.mirror.stored import NOTHING, Stored, place_of, read_states, state_of, write_states
from packvit.train.step.kept import CHECKPOINTS, PROGRESS, find_checkpoints, step_of
from packvit.train.step.resume import DamagedError, read_notes
from packvit.train.validate.best import BEFORE, NOTE

LOGS = ("metrics.jsonl", "skipped.jsonl", "audit.jsonl")
NEEDED = (*LOGS, *FILES, "wandb-id")
LOCKS = (".lock", ".fetch.lock")


def fetch_run(url: str, folder: Path, asked: str, say: Callable[[str], None]) -> None:
    """Make `folder` the copy of a run that goes on from what the store has, or from what followed here.

    Every rank calls it; of those that share the folder, one does it.

    Args:
        url: of the run's folder in the store.
        asked: see `find_resume`.
        say: told what is fetched.

    Raises:
        OSError: the store does not answer, or something cannot be fetched.
        ValueError: the checkpoint that was asked for is neither there nor here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".fetch.lock"):
        stored = Stored.look(url)
        state = find_state(stored, folder)
        if state not in read_states(folder):
            if find_checkpoints(folder / CHECKPOINTS):
                say(f"{url} has gone on without the copy in {folder}, which is fetched anew")
            empty(folder)
            for name in wanted(stored):
                fetch_object(f"{url}/{name}", folder / name)
        elif os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
            # Other machines may lack what followed here.
            for path in find_checkpoints(folder / CHECKPOINTS):
                if step_of(path) > max(stored.steps(), default=0):
                    shutil.rmtree(path)
        fetch_newest(stored, folder, say)
        if asked:
            fetch_asked(stored, folder, asked)
        write_states(folder, [state])


def find_state(stored: Stored, folder: Path) -> str:
    """See `state_of`."""
    steps = stored.steps()
    if not steps:
        return NOTHING
    progress = folder / ".newest.json"
    fetch_object(f"{stored.url}/{place_of(steps[-1])}/{PROGRESS}", progress)
    return state_of(steps[-1], progress)


def empty(folder: Path) -> None:
    """Remove all but what ranks wait for."""
    for path in folder.iterdir():
        if path.name in LOCKS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def wanted(stored: Stored) -> list[str]:
    """What a run goes on with besides checkpoints; of a model without its note not all was sent."""
    models = [stored.below(part) for part in (BEST, BEFORE) if f"{part}/{NOTE}" in stored.names]
    return [name for name in NEEDED if name in stored.names] + [name for names in models for name in names]


def fetch_newest(stored: Stored, folder: Path, say: Callable[[str], None]) -> None:
    """Bring the newest checkpoint that is whole here, unless the copy has it or is ahead."""
    here = [step_of(path) for path in find_checkpoints(folder / CHECKPOINTS)]
    for step in reversed(stored.steps()):
        if max(here, default=0) > step or not fetch_checkpoint(stored, folder, step):
            return
        say(f"Fetched {stored.url}/{place_of(step)}")
        try:
            read_notes(folder / place_of(step))
            return
        except DamagedError:
            pass  # find_resume says so, and passes over to the one before


def fetch_checkpoint(stored: Stored, folder: Path, step: int) -> bool:
    """Bring a checkpoint here, whole; False if it is here already."""
    target, names = folder / place_of(step), stored.below(place_of(step))
    if all((folder / name).exists() for name in names):
        return False
    partial = folder / CHECKPOINTS / f"partial-{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    for name in names:
        fetch_object(f"{stored.url}/{name}", partial / name.removeprefix(f"{place_of(step)}/"))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    return True


def fetch_asked(stored: Stored, folder: Path, asked: str) -> None:
    """Bring the checkpoint here that a run goes back to, unless it has gone on from there already.

    Raises:
        ValueError: there is no such one.
    """
    here = find_checkpoints(folder / CHECKPOINTS)
    try:
        if here and read_notes(here[-1]).get("resumed_from") == asked:
            return
    except ValueError:
        pass
    number = asked.removeprefix("step-")
    if number.isdecimal() and int(number) in stored.steps():
        fetch_checkpoint(stored, folder, int(number))
    elif not any(number.isdecimal() and step_of(path) == int(number) for path in here):
        names = ", ".join(place_of(step).rpartition("/")[2] for step in stored.steps()) or "none"
        raise ValueError(f"train.resume_from={asked}: {stored.url} has {names}")
