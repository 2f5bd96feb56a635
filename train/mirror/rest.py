"""What a run's folder holds outside of checkpoints, sent to a store as far as it has changed."""

import os
from collections.abc import Sequence
from pathlib import Path

from packvit.common.stores.copies import send_object
from packvit.common.stores.objects import delete_objects
from packvit.evaluate import BEST
from packvit.train.mirror.stored import Stored
from packvit.train.step.kept import CHECKPOINTS
from packvit.train.validate.best import BEFORE, NOTE

MODELS = (BEFORE, BEST)  # one of them, with its note, always belongs to the newest checkpoint


class Rest:
    """Logs, pictures, models and evaluations of a run.

    Args:
        url: of the run's folder in the store.
        folder: in which the run works.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self._sent: dict[str, tuple[int, int]] = {}  # by name: size, and when it was changed

    def send(self, stored: Stored) -> None:
        """Send what has changed since the last call, and remove the model that is the best no more.

        Raises:
            OSError: the store does not take it.
        """
        for part in MODELS:
            files = sorted((self.folder / part).glob("*"), key=lambda file: file.name == NOTE)
            if any(map(self._is_new, files)):
                delete_names(self.url, [f"{part}/{NOTE}"])  # the last to come is the first to go
                for file in files:
                    self._send(file)
        for file in filter(self._is_new, self._others()):
            self._send(file)
        for part in MODELS:
            gone = [name for name in stored.below(part) if not (self.folder / name).exists()]
            delete_names(self.url, mark_first(gone, NOTE))

    def _others(self) -> list[Path]:
        """Files beside checkpoints and kept models; weights behind what describes them."""
        found = []
        for path, folders, names in os.walk(self.folder):
            away = (CHECKPOINTS, BEST) if Path(path) == self.folder else ()
            folders[:] = [name for name in folders if not name.startswith(".") and name not in away]
            found += [Path(path, name) for name in names if not name.startswith(".")]
        found = [file for file in found if file.is_file() and not file.is_symlink()]
        return sorted(found, key=lambda file: (file.suffix == ".safetensors", file))

    def _is_new(self, file: Path) -> bool:
        return self._sent.get(self._name(file)) != _mark(file)

    def _send(self, file: Path) -> None:
        mark = _mark(file)  # what is written while it is sent is sent again
        send_object(file, f"{self.url}/{self._name(file)}")
        self._sent[self._name(file)] = mark

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


def _mark(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def mark_first(names: Sequence[str], mark: str) -> list[str]:
    """The names in the order of removal: the last to come, the file called `mark`, is the first to go."""
    return sorted(names, key=lambda name: not name.endswith(f"/{mark}"))


def delete_names(url: str, names: Sequence[str]) -> None:
    """Remove objects below `url`, the first before the others.

    Raises:
        OSError: the store does not do it.
    """
    try:
        delete_objects([f"{url}/{name}" for name in names])
    except OSError as error:
        raise OSError(f"{url}/{names[0]} cannot be removed: {error}") from error
