"""The best model so far, in `best/` of the run's folder, consistent with the run's checkpoints.

A run that was killed resumes from a checkpoint, but its best model may be from a later step, which the run
has yet to repeat. The previous best model is therefore kept, hidden, until a checkpoint has followed.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packvit.common.files import sync
from packvit.evaluate import BEST
from packvit.train.step.kept import CHECKPOINTS, find_checkpoints, step_of

NOTE = "best.json"
BEFORE, PARTIAL, LEAVING = f".{BEST}-before", f".{BEST}-partial", f".{BEST}-leaving"


class BestModel:
    """Keeps the best model; only the main rank uses it.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / BEST

    def replace(self, note: dict[str, Any], save: Callable[[Path], object]) -> None:
        """Put a model in place of the best one so far.

        Args:
            note: for best.json; has its `step`.
            save: writes the model to a folder, which is created if needed.
        """
        partial = self.run_dir / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save(partial)
        (partial / NOTE).write_text(json.dumps(note, indent=1, allow_nan=False) + "\n")
        for path in (*partial.iterdir(), partial):
            sync(path)
        saved = find_checkpoints(self.run_dir / CHECKPOINTS)
        if self.folder.exists():
            # What a resume would not go back to need not stay.
            needed = bool(saved) and step_of_best(self.folder) <= step_of(saved[-1])
            self._leave(BEFORE if needed else LEAVING)
        os.replace(partial, self.folder)
        sync(self.run_dir)
        shutil.rmtree(self.run_dir / LEAVING, ignore_errors=True)

    def _leave(self, name: str) -> None:
        """Rename the best model, in place of what has this name."""
        target = self.run_dir / name
        shutil.rmtree(target, ignore_errors=True)
        os.replace(self.folder, target)

    def go_back(self, step: int) -> None:
        """Restore the best model that the run had after `step`, if it still exists."""
        for name in (PARTIAL, LEAVING):
            shutil.rmtree(self.run_dir / name, ignore_errors=True)
        before = self.run_dir / BEFORE
        if self.folder.exists() and step_of_best(self.folder) > step:
            shutil.rmtree(self.folder)
        if before.exists() and step_of_best(before) > step:
            shutil.rmtree(before)
        if before.exists() and not self.folder.exists():
            os.replace(before, self.folder)


def step_of_best(folder: Path) -> int:
    """The step of a kept model.

    Raises:
        ValueError: its note is damaged; names it.
    """
    path = folder / NOTE
    try:
        return int(json.loads(path.read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove {folder}") from error
