"""Results that become objects in a store: all are written locally first, then uploaded.

They are kept in the cache folder until all of them have been uploaded, so a killed command can resume.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from packvit.common.files import cache_path
from packvit.common.stores.objects import is_object, list_objects, need_stores, write_object
from packvit.data.shards.redact import redact
from packvit.packing import derive_seed

WRITTEN = ".written"  # a file that says that all others of its folder are whole


def look_at_store(out: str) -> list[str]:
    """The URLs of the objects below `out`; shows before hours of work whether the store can be reached.

    Raises:
        ValueError: it cannot be reached.
        ImportError: obstore is not installed.
    """
    need_stores(out)
    try:
        return list_objects(out)
    except OSError as error:
        raise ValueError(f"{redact(out)} cannot be written to: {error}") from error


def write_folder(out: str, task: str, look: Callable[[], str], work: Callable[[Path], None]) -> None:
    """Let `work` write shards to a folder: `out`, or one whose files are then uploaded to `out` in a store.

    Shards are uploaded first, the files that list them last. A task that was killed resumes when repeated.

    Args:
        out: local folder, or URL such as `s3://bucket/folder`.
        task: identifies a command, to recognise its repetition.
        look: tells what the command reads from what it may read later; what was written of other contents and
            could not be uploaded is written anew.

    Raises:
        ValueError: there are other shards in the store, the store does not accept files, or another command
            is writing to the same place.
    """
    if not is_object(out):
        work(Path(out))
        return
    there = look_at_store(out)
    folder = cache_path("outputs") / f"{derive_seed(out, task):032x}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0):
            _write_folder(out, folder, there, look(), work)
    except Timeout as error:
        raise ValueError(f"another command is writing to {redact(out)}: wait until it has ended") from error


def _write_folder(
    out: str, folder: Path, there: Sequence[str], source: str, work: Callable[[Path], None]
) -> None:
    written = folder / WRITTEN
    if written.exists() and written.read_text() != source:
        shutil.rmtree(folder)
    if not written.exists() and any(path.endswith(".tar") for path in there):
        raise ValueError(f"{redact(out)} already holds shards: name another folder or delete them first")
    if not written.exists():
        folder.mkdir(exist_ok=True)
        work(folder)
        written.write_text(source)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    for file in sorted(files, key=lambda file: file.suffix != ".tar"):
        _send(file, f"{out.rstrip('/')}/{file.relative_to(folder).as_posix()}")
    print(f"{redact(out)}: {len(files)} files")
    shutil.rmtree(folder)


def write_file(out: str, work: Callable[[Path], None]) -> None:
    """Let `work` write a file, `out`, or one that is then uploaded to `out`; raises like `write_folder`."""
    if not is_object(out):
        work(Path(out))
        return
    look_at_store(out)
    folder = cache_path("outputs") / f"{derive_seed(out):032x}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / out.rpartition("/")[2]
    work(file)
    _send(file, out)
    shutil.rmtree(folder)


def _send(file: Path, out: str) -> None:
    try:
        write_object(file, out)
    except OSError as error:
        raise ValueError(f"{redact(out)} cannot be written: {error}; it waits in {file}") from error
