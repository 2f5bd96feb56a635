"""Files that appear whole or not at all, folders that can be written to, and the cache folder."""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from socket import gethostname
from typing import BinaryIO

from platformdirs import user_cache_path

BLOCK = 1 << 22  # bytes
SHARED_WITHIN = 60  # seconds until what one machine has written is seen by all, on the slowest file system


def cache_path(name: str) -> Path:
    """Where the file or folder `name` is kept: in $PACKVIT_CACHE, else in the user's cache folder."""
    folder = os.environ.get("PACKVIT_CACHE")
    return (Path(folder) if folder else user_cache_path("packvit", appauthor=False)) / name


def write_whole(path: Path, text: str) -> None:
    """Write a small file under another name, flush it to disk and rename it."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under; if the block succeeds, the file is flushed to disk and
    renamed."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def write_nameless(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that has no name until it is complete: a process that is killed leaves nothing behind.

    If the system has no nameless files (Linux's O_TMPFILE), the file has another name until then. It is meant
    for caches: if several processes write the same file, any of them wins.

    Raises:
        OSError: it cannot be written.
    """
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):
        # Not the process's number: processes of other machines have the same ones.
        partial = path.with_name(f".{path.name}.{token_hex(8)}")
        try:
            with partial.open("wb") as file:
                write(file)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return
    with os.fdopen(descriptor, "w+b") as file:
        write(file)
        file.flush()
        path.unlink(missing_ok=True)
        with suppress(FileExistsError):
            # A folder's descriptor makes Python follow the link to the file.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def require_shared(path: Path) -> None:
    """Refuse a folder in which this machine does not see what another one has written.

    Raises:
        ValueError: names the folder.
    """
    for waited in range(SHARED_WITHIN):
        if path.exists():
            return
        time.sleep(min(1, waited))
        os.listdir(path.parent)  # a network's file system then asks for new names
    raise ValueError(f"{path.name} is not in {path.parent}: {_to_share(path.parent)}")


def check_shared(folder: Path) -> None:
    """Refuse to write for another machine to a folder that it has made and this one does not see.

    Raises:
        ValueError: names the folder and this machine.
    """
    if not folder.is_dir():
        raise ValueError(f"{gethostname()} has no {folder}: {_to_share(folder)}")


def _to_share(folder: Path) -> str:
    """What to do about a folder that machines do not share."""
    if cache_path("") in folder.parents:
        return "all machines must share the cache, so set PACKVIT_CACHE to a shared folder on each of them"
    return "all machines must share this folder"


def refuse_url(folder: Path, flag: str) -> None:
    """Refuse a path that looks like a URL, such as `s3://bucket/folder`.

    Raises:
        ValueError: names the flag.
    """
    scheme, *rest = folder.parts or ("",)
    if len(scheme) > 2 and scheme.endswith(":") and not os.path.lexists(scheme):
        raise ValueError(f"{flag} {scheme}//{'/'.join(rest)} must be a folder of this machine")


def check_writable(folder: Path, flag: str = "--out") -> None:
    """Refuse a folder that cannot be written to, before hours of work; creates nothing.

    Args:
        folder: the folder, which need not exist yet.
        flag: the flag that named it.

    Raises:
        ValueError: names the folder and the reason.
    """
    refuse_url(folder, flag)
    try:
        # The first one above it that is there: it would be made in there.
        place = folder.absolute()
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise ValueError(f"{flag} {folder} cannot be written to: {place} is not a folder")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {folder} cannot be written to ({error.strerror})") from error
