"""Where a run resumes: from its newest intact checkpoint, or the requested one."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packvit.train.step.checkpoint import VERSION, Part, first_line
from packvit.train.step.integrity import check_files, has_hashes
from packvit.train.step.kept import PROGRESS, find_checkpoints, step_of


@dataclass(frozen=True)
class Resume:
    """Where a run resumes.

    Args:
        path: path of the checkpoint; None starts anew.
        notes: the states of its parts, by name.
        aside: later checkpoints, which are damaged or not used.
    """

    path: Path | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    aside: tuple[Path, ...] = ()

    def load(self, parts: Mapping[str, Part]) -> None:
        """Restore some parts of the run, in their order.

        Raises:
            ValueError: the checkpoint does not belong to this run.
        """
        for name, part in parts.items():
            part.load_state_dict(self.notes[name])


def find_resume(folder: Path, asked: str, say: Callable[[str], None]) -> Resume:
    """Read and check the checkpoints in `folder`, newest first, until one is intact.

    Every rank does this by itself and finds the same one.

    Args:
        asked: name of the checkpoint to resume from, such as step-100; empty uses the newest, and so does one
            from which the newest has continued.
        say: called about each checkpoint that is skipped.

    Raises:
        ValueError: the requested checkpoint is missing or damaged, or none is intact.
    """
    found = find_checkpoints(folder)
    if asked and not _went_on_from(asked, found):
        return _find_asked(folder, asked, found)
    for place in reversed(range(len(found))):
        try:
            return Resume(found[place], read_notes(found[place]), tuple(found[place + 1 :]))
        except DamagedError as error:
            say(f"{error}: resuming from the previous checkpoint")
    if found:
        raise ValueError(f"no checkpoint in {folder} is intact: remove them to start anew")
    return Resume()


def _went_on_from(asked: str, found: list[Path]) -> bool:
    """Whether the newest checkpoint follows from the one asked for: a run that is started again and again by
    the same command goes back only once."""
    try:
        return bool(found) and read_notes(found[-1]).get("resumed_from") == asked
    except ValueError:
        return False


def _find_asked(folder: Path, asked: str, found: list[Path]) -> Resume:
    number = asked.removeprefix("step-")
    wanted = [path for path in found if number.isdecimal() and step_of(path) == int(number)]
    if not wanted:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"train.resume_from={asked}: {folder} has {names}")
    path = wanted[0]
    return Resume(path, read_notes(path), tuple(found[found.index(path) + 1 :]))


class DamagedError(ValueError):
    """A checkpoint differs from what was written."""


def read_notes(path: Path) -> dict[str, Any]:
    """The states of a checkpoint's parts by name, after all its files have been compared with their hashes.

    Raises:
        DamagedError: a file is damaged or missing.
        ValueError: the checkpoint has another version.
    """
    try:
        notes = json.loads((path / PROGRESS).read_text())
        version = notes["version"]
        # Before the version is believed: a bit of it may have flipped.
        if version == VERSION or has_hashes(path):
            check_files(path, notes.get("ranks", 0))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged ({first_line(error)})") from error
    if version != VERSION:
        raise ValueError(f"{path}: version {version}, this packvit reads {VERSION}")
    return notes
