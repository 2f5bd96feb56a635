"""Files here and objects in a store that are copies of one another, by name."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from packvit.common.files import cache_path
from packvit.common.stores.again import try_again
from packvit.common.stores.objects import ANSWER_TIMEOUT, ObjectCopy, is_object, need_stores, write_object
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
    partial = file.with_name(f".{file.name}.partial")
    facts: dict[str, str] = {}

    def attempt() -> None:
        nonlocal facts
        tag = strong(facts)
        kept = partial.stat().st_size if tag and partial.exists() else 0
        if kept >= int(facts.get("Content-Length", 0)):
            kept = 0
        copy = ObjectCopy(url, partial, ANSWER_TIMEOUT, kept, tag if kept else None)
        try:
            facts = copy.begin()
            for _ in copy.lengths():
                pass
        except Changed:
            facts = {}
            raise
        finally:
            copy.close()

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        try_again(attempt, RETRIES)
        os.replace(partial, file)
    except OSError as error:
        raise OSError(f"{url} cannot be fetched: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


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
    """The names that objects have in the folder `url`."""
    return [one.removeprefix(f"{url}/") for one in urls]
