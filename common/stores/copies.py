"""Files here and objects in a store that are copies of one another, by name."""

import json
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from filelock import FileLock

from packvit.common.files import cache_path, write_whole
from packvit.common.stores.again import try_again
from packvit.common.stores.objects import (
    ANSWER_TIMEOUT,
    ObjectCopy,
    describe_objects,
    is_object,
    need_stores,
    write_object,
)
from packvit.common.stores.partial import Partial
from packvit.common.stores.source import Changed, strong

RETRIES = 2  # of a file, beyond those of each request


def url_of(path: str | Path) -> str | None:
    """The URL of an object or folder in a store, also if it has been made a Path; None for others."""
    scheme, *rest = Path(path).parts or ("",)
    url = f"{scheme}//{'/'.join(rest)}"
    return url if len(rest) > 0 and is_object(url) and not os.path.lexists(scheme) else None


def copy_place(kind: str, url: str) -> Path:
    """Where the cache has the copy of an object or folder in a store.

    Args:
        kind: of copies, which have a folder of their own.

    Raises:
        ValueError: the URL leads elsewhere.
        ImportError: obstore is not installed.
    """
    need_stores(url)
    scheme, _, path = url.partition("://")
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts:
        raise ValueError(f"{url} is no place in a store")
    return cache_path(kind).joinpath(scheme, *parts)


def fetch_object(url: str, file: Path) -> None:
    """Copy an object to a file, which appears whole or not at all; its folder is made if needed.

    Raises:
        OSError: it cannot be fetched; names it.
    """
    partial = Partial(file.with_name(f".{file.name}.partial"))

    def attempt() -> None:
        kept = partial.kept()
        tag = strong(partial.facts) if kept else None
        copy = ObjectCopy(url, partial.path, ANSWER_TIMEOUT, kept, tag)
        try:
            partial.facts = copy.begin()
            for _ in copy.lengths():
                pass
        except Changed:
            partial.drop()
            raise
        finally:
            copy.close()

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        try_again(attempt, RETRIES)
        os.replace(partial.path, file)
    except OSError as error:
        raise OSError(f"{url} cannot be fetched: {error}") from error
    finally:
        partial.drop()


def send_object(file: Path, url: str) -> None:
    """Make an object of a file, or replace one.

    Raises:
        OSError: the store does not take it; names it.
    """
    try:
        try_again(lambda: write_object(file, url), RETRIES)
    except OSError as error:
        raise OSError(f"{url} cannot be written: {error}") from error


def names_below(url: str, urls: Iterable[str]) -> list[str]:
    """The names that objects have in the folder `url`; none of them leads out of it."""
    names = [one.removeprefix(f"{url}/") for one in urls]
    return [name for name in names if ".." not in name.split("/")]


def copy_folder(url: str, kind: str, want: Callable[[Collection[str]], Iterable[str]]) -> Path:
    """A folder of the cache with some objects of a folder in a store, as they are now.

    Args:
        url: of the folder in the store.
        kind: see `copy_place`.
        want: chooses among the names that there are.

    Raises:
        OSError: the store does not answer, or something cannot be fetched; names it.
        ValueError: the URL leads elsewhere.
    """
    folder = copy_place(kind, url)
    try:
        found = describe_objects(url)
    except OSError as error:
        raise OSError(f"{url} cannot be listed: {error}") from error
    tags = {name: found[f"{url}/{name}"] for name in want(names_below(url, found))}
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / ".tags.json"
    with FileLock(folder / ".lock"):
        known: dict[str, str] = {}
        with suppress(OSError, ValueError):
            known = dict(json.loads(note.read_text()))
        for name in known.keys() - tags.keys():
            (folder / name).unlink(missing_ok=True)
        for name, tag in tags.items():
            if known.get(name) != tag or not (folder / name).exists():
                if known.pop(name, None) is not None:  # what it said is not true any more, however this ends
                    write_whole(note, json.dumps(known))
                fetch_object(f"{url}/{name}", folder / name)
        write_whole(note, json.dumps(tags))
    return folder
