"""Results that become objects in a store: all are written locally first, then uploaded.

They are kept in the cache folder until all of them have been uploaded, so a killed command can resume.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

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


def write_folder(out: str, task: str, work: Callable[[Path], None]) -> None:
    """Let `work` write shards to a folder: `out`, or one whose files are then uploaded to `out` in a store.

    Shards are uploaded first, the files that list them last. A task that was killed resumes when repeated.

    Args:
        out: local folder, or URL such as `s3://bucket/folder`.
        task: identifies a command, to recognise its repetition.

    Raises:
        ValueError: there are other shards in the store, or the store does not accept files.
    """
    if not is_object(out):
        work(Path(out))
        return
    there = look_at_store(out)
    folder = cache_path("outputs") / f"{derive_seed(out, task):032x}"
    if not (folder / WRITTEN).exists():
        if any(path.endswith(".tar") for path in there):
            raise ValueError(f"{redact(out)} already holds shards: name another folder or delete them first")
        folder.mkdir(parents=True, exist_ok=True)
        work(folder)
        (folder / WRITTEN).touch()
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
