"""The shards that a run reads: their names are expanded, and they are opened by number and identified."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase

from braceexpand import braceexpand

from packvit.common.stores.objects import is_object, list_objects, need_stores
from packvit.data.shards.fetch import ASK_TIMEOUT, FETCH, GZIP_SUFFIXES, FetchConfig
from packvit.data.shards.fingerprint import digest, fingerprint
from packvit.data.shards.redact import redact
from packvit.data.shards.shard import Shard
from packvit.data.shards.source import is_remote

SHARD_SUFFIXES = (".tar", *GZIP_SUFFIXES)
MANY = 64  # names, from which on lists of their folders cost less than a look at each


@dataclass(frozen=True)
class ShardSet:
    """Shards by number, and how they are fetched.

    Args:
        paths: paths of all shards, in a fixed order.
        counts: number of shards that each pattern names, in the patterns' order.
        fetch: how shards that are not local tar files are fetched.
    """

    paths: tuple[str, ...]
    counts: tuple[int, ...]
    fetch: FetchConfig = FETCH

    @staticmethod
    def find(patterns: str | Sequence[str], fetch: FetchConfig = FETCH) -> "ShardSet":
        """The shards that patterns name; see `expand_shards`, also for errors."""
        found = [expand_pattern(pattern) for pattern in _several(patterns)]
        paths = refuse_twice(path for some in found for path in some)
        return ShardSet(tuple(paths), tuple(map(len, found)), fetch)

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, number: int) -> Shard:
        """A shard by its number; raises like `Shard.open`."""
        return Shard.open(self.paths[number], self.fetch)

    def fingerprint(self) -> dict:
        """A fingerprint that does not depend on where the shards lie; looks at few of them; see
        `same_shards`."""
        return fingerprint(self.paths, min(ASK_TIMEOUT, self.fetch.timeout))

    def digest(self) -> str:
        """A hash of the names of all shards, and of the sizes of the local ones; asks for each size.

        Raises:
            OSError: a local shard is gone.
        """
        return digest(self.paths)


def expand_shards(patterns: str | Sequence[str]) -> list[str]:
    """Shards in natural order, from paths, brace patterns, globs, folders, and URLs.

    Globs and folders may be local or in an object store.

    Raises:
        ValueError: a pattern matches nothing, a file is missing or named twice, or a store does not list its
            objects.
        ImportError: a shard is in an object store, and obstore is not installed.
    """
    return refuse_twice(path for pattern in _several(patterns) for path in expand_pattern(pattern))


def expand_pattern(pattern: str) -> list[str]:
    """The shards that one pattern names; see `expand_shards`."""
    paths: list[str] = []
    names = expand_braces(pattern)
    there = _files_beside(names) if len(names) >= MANY else set()
    for name in names:
        if name in there or (is_remote(name) and not is_object(name)):
            paths.append(name)
        else:
            paths += in_natural_order(_objects(name) if is_object(name) else _local_shards(name))
    return paths


def expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{1..3}`, unless there is a file with exactly this name."""
    if not is_remote(pattern) and os.path.exists(pattern):
        return [pattern]  # braces that are part of a name
    try:
        return list(braceexpand(pattern))
    except ValueError:  # they do not balance
        return [pattern]


def find_commands(shards: Iterable[str]) -> list[str]:
    """The entries of `shards` that are commands to run, `pipe:COMMAND`, braces expanded or not."""
    return [s for s in shards if any(path.lower().startswith("pipe:") for path in expand_braces(s))]


def refuse_twice(paths: Iterable[str]) -> list[str]:
    """The paths.

    Raises:
        ValueError: there are none, or one is named twice.
    """
    by_place: dict[str, str] = {}
    for path in paths:
        place = path if is_remote(path) else os.path.abspath(path)
        if place in by_place:
            raise ValueError(f"{redact(path)} is named twice")
        by_place[place] = path
    if not by_place:
        raise ValueError("no shards are named")
    return list(by_place.values())


def _files_beside(names: Sequence[str]) -> set[str]:
    """Those of many local names that are files, from lists of their folders instead of a look at each."""
    there: set[str] = set()
    for folder in {os.path.dirname(name) for name in names if not is_remote(name)}:
        with suppress(OSError), os.scandir(folder or ".") as entries:
            there.update(os.path.join(folder, entry.name) for entry in entries if entry.is_file())
    return there


def _several(patterns: str | Sequence[str]) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _local_shards(name: str) -> list[str]:
    if os.path.isdir(name):
        found: list[str] = []
        links: list[str] = []
        with suppress(OSError), os.scandir(name.rstrip("/") or "/") as entries:  # it may not be read
            for entry in entries:
                if entry.name.endswith(SHARD_SUFFIXES) and not entry.name.startswith("."):
                    found.append(entry.path)
                    if entry.is_symlink():
                        links.append(entry.path)
        if not found:
            raise ValueError(f"{name} is a folder without .tar files")
        refuse_broken(links)
        return found
    if glob.has_magic(name) and not os.path.exists(name):
        found = glob.glob(name)
        if not found:
            raise ValueError(f"no file matches {name}")
        refuse_broken(_links(found))
        return found
    if not os.path.isfile(name):
        raise ValueError(f"{name}: no such shard")
    return [name]


def refuse_broken(links: Iterable[str]) -> None:
    """Refuse links to files that are not there.

    Raises:
        ValueError: names such a link.
    """
    for path in links:
        if not os.path.exists(path):
            raise ValueError(f"{path}: no such shard: it links to {os.path.realpath(path)}")


def _links(paths: Iterable[str]) -> Iterator[str]:
    """Those of many files that are links, from lists of their folders instead of a look at each."""
    shards = set(paths)
    for folder in {os.path.dirname(path) for path in shards}:
        with os.scandir(folder or ".") as entries:
            links = [os.path.join(folder, entry.name) for entry in entries if entry.is_symlink()]
        yield from (path for path in links if path in shards)


def _objects(name: str) -> list[str]:
    """The shards in an object store that one name stands for: an object, a folder or a glob."""
    need_stores(name)
    if name.endswith(SHARD_SUFFIXES) and not glob.has_magic(name):
        return [name]
    parts = name.rstrip("/").split("/")
    if not glob.has_magic(name):
        parts.append("*")
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    try:
        listed = list_objects("/".join(parts[:fixed]))
    except OSError as error:
        raise ValueError(f"{redact(name)} cannot be listed: {error}") from error
    found = []
    for path in listed:
        own = path.split("/")
        matches = len(own) == len(parts) and all(map(fnmatchcase, own[fixed:], parts[fixed:]))
        if matches and path.endswith(SHARD_SUFFIXES):
            found.append(path)
    if not found:
        raise ValueError(f"{redact(name)}: there is no shard in the store that it names")
    return found


def in_natural_order(paths: list[str]) -> list[str]:
    """The paths sorted so that shard-9 comes before shard-10."""
    # Names that differ only in digits sort by themselves; 100,000 keys take 60 MB.
    if all(map(str.isascii, paths)) and len({re.sub("[0-9]", "0", path) for path in paths}) == 1:
        return sorted(paths)
    return sorted(paths, key=_natural)


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key that puts shard-9 before shard-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]
