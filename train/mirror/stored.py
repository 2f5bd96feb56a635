"""What the store has of a run, and what the copy here knows of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packvit.common.files import hash_file, write_whole
from packvit.common.stores.copies import names_below
from packvit.common.stores.objects import list_objects
from packvit.train.step.kept import CHECKPOINTS, PROGRESS, name_of

WRITER = f"{CHECKPOINTS}/.writer"  # an object that says which start of the run writes to the store
NOTE = ".store.json"
NOTHING = ""  # the state of a store without checkpoints


@dataclass(frozen=True)
class Stored:
    """The objects of a run.

    Args:
        url: of its folder.
        names: of the objects, below it.
    """

    url: str
    names: frozenset[str]

    @staticmethod
    def look(url: str) -> "Stored":
        """What is there now.

        Raises:
            OSError: the store does not say.
        """
        try:
            return Stored(url, frozenset(names_below(url, list_objects(url))))
        except OSError as error:
            raise OSError(f"{url} cannot be listed: {error}") from error

    def below(self, folder: str) -> list[str]:
        """Names of the objects in a folder."""
        return sorted(name for name in self.names if name.startswith(f"{folder}/"))

    def checkpoints(self) -> dict[int, bool]:
        """By step, in its order, whether a checkpoint is complete: its last object is there."""
        found: dict[int, bool] = {}
        for name in sorted(self.names):
            parts = name.split("/")
            step = parts[1].removeprefix("step-") if len(parts) > 2 else ""
            if parts[0] == CHECKPOINTS and step.isdecimal() and parts[1] == name_of(int(step)):
                found[int(step)] = found.get(int(step), False) or parts[2:] == [PROGRESS]
        return found

    def steps(self) -> list[int]:
        """Those of complete checkpoints, in order."""
        return [step for step, complete in self.checkpoints().items() if complete]


def place_of(step: int) -> str:
    """The folder of a checkpoint in that of its run."""
    return f"{CHECKPOINTS}/{name_of(step)}"


def state_of(step: int, progress: Path) -> str:
    """What tells the state of a store from others: its newest complete checkpoint.

    Args:
        progress: the file of that checkpoint that was sent last.
    """
    return f"{step} {hash_file(progress)}"


def read_states(folder: Path) -> list[str]:
    """The states of the store that the copy in `folder` goes on from."""
    note = folder / NOTE
    if not note.exists():
        return [NOTHING]
    try:
        return [str(state) for state in json.loads(note.read_text())]
    except (ValueError, TypeError):
        return []


def write_states(folder: Path, states: Sequence[str]) -> None:
    """Note them: two while the store goes from one to the other."""
    write_whole(folder / NOTE, json.dumps(list(states)))
