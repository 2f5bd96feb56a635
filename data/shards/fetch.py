"""Shards that are not local tar files: fetched once, whole, into a cache folder, and read there.

Packing decides about a sample long before it is decoded, and a resumed run comes back to samples in the
middle of a shard. Both want random access, which a remote stream lacks and a local copy has. URLs are opened
by webdataset's gopen (http, https, s3, gs, hf, `pipe:COMMAND`, ...); gzipped tars, remote or local, are
unpacked into the cache.
"""

import gzip
import os
import shutil
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path
from webdataset.gopen import gopen  # pyright: ignore[reportAttributeAccessIssue]

from packvit.packing import derive_seed

GZIP_MAGIC = b"\x1f\x8b"
GZIP_SUFFIXES = (".tar.gz", ".tgz")
CHUNK = 64 * 1024  # bytes


@dataclass(frozen=True)
class FetchConfig:
    """How shards that are not local tar files are fetched.

    Args:
        timeout: seconds without a byte after which a source counts as stalled.
        cache_gb: room for fetched shards, in 10**9 bytes; those not used for longest make way for others.
            It should hold the shards that are being read: `data.streams` times `data.shuffle_shards`.
    """

    timeout: float = 60.0
    cache_gb: float = 100.0

    def __post_init__(self) -> None:
        for name in ("timeout", "cache_gb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"fetch.{name}={getattr(self, name)} must be positive")


FETCH = FetchConfig()


def is_remote(path: str) -> bool:
    """Whether gopen has to open it."""
    return path.startswith("pipe:") or "://" in path


def local_file(path: str, config: FetchConfig) -> str:
    """The path itself for a local tar; otherwise that of a local copy, fetched if it is not there yet.

    Raises:
        OSError: it cannot be fetched, or the source stalls.
        ValueError: it is no whole gzip file.
    """
    remote = is_remote(path)
    if not remote and not path.endswith(GZIP_SUFFIXES):
        return path
    folder = cache_folder("shards")
    status = None if remote else os.stat(path)
    parts = (path,) if status is None else (os.path.abspath(path), status.st_size, status.st_mtime_ns)
    target = folder / f"{derive_seed(*parts):032x}.tar"
    if target.exists():
        # The time of access says what was not used for longest; that of modification belongs to the index.
        os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        return str(target)
    folder.mkdir(parents=True, exist_ok=True)
    # Several workers may want it: the first fetches it, the others wait.
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            partial = target.with_suffix(".partial")
            try:
                _download(path, partial, config.timeout)
                _unzip(partial)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
            _make_room(folder, target, config.cache_gb * 1e9)
    return str(target)


def cache_folder(kind: str) -> Path:
    """Where things of a `kind` are kept: in $PACKVIT_CACHE, else in the user's cache folder."""
    folder = os.environ.get("PACKVIT_CACHE")
    return (Path(folder) if folder else user_cache_path("packvit", appauthor=False)) / kind


def _download(path: str, target: Path, timeout: float) -> None:
    """Copy a source to `target`; the copying thread is given up when it stalls."""
    progress = threading.Condition()
    state: dict[str, Any] = {"bytes": 0, "done": False, "error": None, "source": None}

    def copy() -> None:
        try:
            with gopen(path) if is_remote(path) else open(path, "rb") as source, target.open("wb") as file:
                state["source"] = source
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                    with progress:
                        state["bytes"] += len(chunk)
                        progress.notify()
        except Exception as error:
            state["error"] = error
        with progress:
            state["done"] = True
            progress.notify()

    threading.Thread(target=copy, daemon=True).start()
    with progress:
        while not state["done"]:
            if not progress.wait(timeout):
                process = getattr(state["source"], "proc", None)
                if process is not None:
                    process.kill()
                raise TimeoutError(f"no byte came in {timeout:g} s, after {state['bytes']}")
    if state["error"] is not None:
        raise OSError(str(state["error"])) from state["error"]
    if not state["bytes"]:
        raise OSError("its source is empty")


def _unzip(file: Path) -> None:
    """Replace a gzipped file by what is in it; others stay."""
    with file.open("rb") as start:
        if start.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
            return
    unpacked = file.with_suffix(".unpacked")
    try:
        with gzip.open(file) as source, unpacked.open("wb") as out:
            shutil.copyfileobj(source, out)
        os.replace(unpacked, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"it is a broken gzip file ({error})") from error
    finally:
        unpacked.unlink(missing_ok=True)


def _make_room(folder: Path, keep: Path, limit: float) -> None:
    """Remove the shards that were not read for longest until the rest fits."""
    files = sorted(folder.glob("*.tar"), key=lambda file: file.stat().st_atime)
    total = sum(file.stat().st_size for file in files)
    for file in files:
        if total <= limit:
            return
        if file != keep:
            total -= file.stat().st_size
            file.unlink(missing_ok=True)
