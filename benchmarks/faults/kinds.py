"""The faults of the chaos test: what is done, and what the run has to say or to do then."""

import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from faults.life import Life

WRITING = 20.0  # seconds in which a run begins to write a checkpoint
BALLAST = "ballast"  # a file that fills the disk


@dataclass(frozen=True)
class Ending:
    """A fault that ends a life.

    Args:
        act: does it to a life with the run's folder; returns whether it could be done.
        saves: whether the step that was taken last has to be in a checkpoint afterwards.
        says: what the output must hold.
        early: whether it may come before training has begun.
        workers: whether it needs worker processes.
    """

    act: Callable[[Life, Path, Random], bool]
    saves: bool = False
    says: str = ""
    early: bool = False
    workers: bool = False


def _send(number: signal.Signals, *roles: str, one: bool = False) -> Callable[[Life, Path, Random], bool]:
    def act(life: Life, folder: Path, rng: Random) -> bool:
        return life.send(number, *roles, only=rng.randrange(64) if one else None) > 0

    return act


def _kill_while_saving(life: Life, folder: Path, rng: Random) -> bool:
    """Somewhere between the first byte and the renaming, which take some hundredths of a second."""
    deadline = time.monotonic() + WRITING
    while not list((folder / "checkpoints").glob("partial-*")):
        if time.monotonic() > deadline or life.launcher.poll() is not None:
            return False
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    return life.send(signal.SIGKILL) > 0


def _fill_disk(life: Life, folder: Path, rng: Random) -> bool:
    """Leave less room than a checkpoint takes, or none."""
    left = rng.choice((0, 50_000, 500_000))
    with (folder / BALLAST).open("wb") as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - left))
    return shutil.disk_usage(folder).free < 1_000_000


FULL = "the disk is full"
ENDINGS = {
    "SIGTERM to all processes": Ending(_send(signal.SIGTERM), saves=True, early=True),
    "SIGTERM to torchrun": Ending(_send(signal.SIGTERM, "launcher"), saves=True, early=True),
    "SIGINT to torchrun": Ending(_send(signal.SIGINT, "launcher"), saves=True, early=True),
    "SIGUSR1 to all processes": Ending(_send(signal.SIGUSR1), saves=True, early=True),
    "SIGKILL of torchrun": Ending(_send(signal.SIGKILL, "launcher"), saves=True, early=True),
    "SIGKILL of a rank": Ending(_send(signal.SIGKILL, "rank", one=True)),
    "SIGKILL of a worker": Ending(_send(signal.SIGKILL, "worker", one=True), workers=True),
    "SIGKILL of all processes": Ending(_send(signal.SIGKILL), early=True),
    "SIGKILL while a checkpoint is written": Ending(_kill_while_saving),
    "a worker is stopped": Ending(
        _send(signal.SIGSTOP, "worker", one=True), says="for a batch of data stream", workers=True
    ),
    FULL: Ending(_fill_disk, says="no space|No space"),
}


@dataclass(frozen=True)
class Resting:
    """A fault while nothing runs.

    Args:
        act: does it to the run's folder; returns whether it could be done.
        says: what the output of the next life must hold.
    """

    act: Callable[[Path, Random], bool]
    says: str


def _newest_files(folder: Path) -> list[Path]:
    """The files of the newest checkpoint, if there is another one to fall back to."""
    found = sorted((folder / "checkpoints").glob("step-*"))
    return sorted(path for path in found[-1].rglob("*") if path.is_file()) if len(found) > 1 else []


def flip_bit(path: Path, rng: Random) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        place = rng.randrange(path.stat().st_size)
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def _flip_checkpoint(folder: Path, rng: Random) -> bool:
    files = _newest_files(folder)
    if files:
        flip_bit(rng.choice(files), rng)
    return bool(files)


def _cut_checkpoint(folder: Path, rng: Random) -> bool:
    files = _newest_files(folder)
    if files:
        chosen = rng.choice(files)
        os.truncate(chosen, rng.randrange(chosen.stat().st_size))
    return bool(files)


def _zero_logs(folder: Path, rng: Random) -> bool:
    """What a loss of power leaves where the file's length reached the disk and its last bytes did not."""
    path = folder / rng.choice(("metrics.jsonl", "audit.jsonl"))
    if not path.exists():
        return False
    with path.open("ab") as file:
        file.write(bytes(rng.randrange(1, 2000)) + b"\n")
    return True


RESTING = {
    "a bit flips in the newest checkpoint": Resting(
        _flip_checkpoint, "resuming from the previous checkpoint"
    ),
    "a file of the newest checkpoint is cut": Resting(
        _cut_checkpoint, "resuming from the previous checkpoint"
    ),
    "zeros at the end of a log": Resting(_zero_logs, "damaged and were removed"),
}

# What the web server does wrong with one answer.
NETWORK = {
    "a dropped connection": "drop",
    "a body that is cut": "cut",
    "a body that is cut, of unknown length": "unsized cut",
    "a stalled connection": "stall",
    "a drip": "drip",
    "HTTP 500": 500,
    "HTTP 429": 429,
    "a page to log in": "page",
}


def cut_shard(path: Path, rng: Random) -> None:
    """Cut a tar somewhere."""
    size = path.stat().st_size
    os.truncate(path, rng.randrange(size // 10, size * 9 // 10))


def break_image(path: Path, rng: Random) -> None:
    """Write over the beginning of an image in a tar."""
    _overwrite(path, rng, 0, 24, suffix=".jpg")


def break_header(path: Path, rng: Random) -> None:
    """Write over a header in a tar, of any sample but the first."""
    _overwrite(path, rng, -tarfile.BLOCKSIZE, tarfile.BLOCKSIZE, skip=4)


def _overwrite(path: Path, rng: Random, start: int, size: int, suffix: str = "", skip: int = 0) -> None:
    with tarfile.open(path) as tar:
        members = [member for member in tar.getmembers()[skip:] if member.name.endswith(suffix)]
    with path.open("r+b") as file:
        file.seek(rng.choice(members).offset_data + start)
        file.write(rng.randbytes(size))


LOCAL_LOSSES = {
    "a shard is cut": cut_shard,
    "an image is damaged": break_image,
    "a header of a tar is damaged": break_header,
}
GONE = "a shard is gone from the server"
