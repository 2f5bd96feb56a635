"""Names of classes beside shards: classes.json, a list with a name for each class."""

import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from packvit.data.shards.fetch import FETCH, GZIP_SUFFIXES, FetchConfig, local_beside
from packvit.data.shards.source import has_ranges, is_remote

CLASSES = "classes.json"


def read_class_names(folder: str | Path, fetch: FetchConfig = FETCH) -> list[str] | None:
    """The list in a folder's classes.json, as `packvit shards write` leaves it; None if it cannot be read.

    Args:
        folder: here, on a web server or in an object store.
        fetch: how it is fetched from there.
    """
    base, mark, query = str(folder).partition("?") if is_remote(str(folder)) else (str(folder), "", "")
    path = local_beside(f"{base}/{mark}{query}", CLASSES, fetch)
    try:
        names = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def named_folders(patterns: Iterable[str], fetch: FetchConfig = FETCH) -> Iterator[tuple[str, list[str]]]:
    """The folders of shards that name their classes, with the names; see `shard_folders`."""
    for folder in shard_folders(patterns):
        names = read_class_names(folder, fetch)
        if names is not None:
            yield folder, names


def shard_folders(patterns: Iterable[str]) -> list[str]:
    """The folders in which the shards of patterns lie, in the order of the patterns.

    Commands have none, nor have patterns of several folders in a store.
    """
    folders = [_folder(pattern) for pattern in patterns if not is_remote(pattern) or has_ranges(pattern)]
    return [
        folder for folder in folders if not (is_remote(folder) and glob.has_magic(folder.partition("?")[0]))
    ]


def _folder(pattern: str) -> str:
    if not is_remote(pattern):
        return pattern if os.path.isdir(pattern) else os.path.dirname(pattern) or "."
    base, mark, query = pattern.partition("?")
    shards = base.endswith((".tar", *GZIP_SUFFIXES)) or glob.has_magic(base.rpartition("/")[2])
    return f"{base.rpartition('/')[0] if shards else base.rstrip('/')}{mark}{query}"
