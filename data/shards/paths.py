"""Which shards a run reads: names expanded, opened by number, and told from others."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from braceexpand import braceexpand

from packvit.data.shards.fetch import FETCH, GZIP_SUFFIXES, FetchConfig, is_remote
from packvit.data.shards.shard import Shard
from packvit.packing import derive_seed

SHARD_SUFFIXES = (".tar", *GZIP_SUFFIXES)


@dataclass(frozen=True)
class ShardSet:
    """Shards by number, and how they are fetched.

    Args:
        paths: of all shards, in a fixed order.
        counts: how many of them each pattern named, in the patterns' order.
        fetch: how those that are not local tar files are fetched.
    """

    paths: tuple[str, ...]
    counts: tuple[int, ...]
    fetch: FetchConfig = FETCH

    @staticmethod
    def find(patterns: str | Sequence[str], fetch: FetchConfig = FETCH) -> "ShardSet":
        """The shards that patterns name; see `expand_shards`, which also raises."""
        each = [patterns] if isinstance(patterns, str) else list(patterns)
        paths = tuple(expand_shards(each))
        counts = tuple(len(expand_shards(pattern)) for pattern in each) if len(each) > 1 else (len(paths),)
        return ShardSet(paths, counts, fetch)

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, number: int) -> Shard:
        """A shard by its number; raises as `Shard.open` does."""
        return Shard.open(self.paths[number], self.fetch)

    def fingerprint(self) -> dict:
        """What tells the shards from others: names in order and sizes, wherever the files lie."""
        names = [os.path.basename(path) for path in self.paths]
        sizes = [-1 if is_remote(path) else os.path.getsize(path) for path in self.paths]
        return {"number": len(names), "first": names[0], "digest": f"{derive_seed(*names, *sizes):032x}"}


def expand_shards(patterns: str | Sequence[str]) -> list[str]:
    """Shards in natural order, from paths, brace patterns, globs, folders, and URLs that gopen knows.

    Raises:
        ValueError: a pattern matches nothing, a file is missing, or a file is named twice.
    """
    paths: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in braceexpand(pattern):
            paths += [name] if is_remote(name) else sorted(_local_shards(name), key=_natural)
    if not paths:
        raise ValueError("no shards are named")
    seen: set[str] = set()
    for path in paths:
        if (absolute := path if is_remote(path) else os.path.abspath(path)) in seen:
            raise ValueError(f"{path} is named twice")
        seen.add(absolute)
    return paths


def _local_shards(name: str) -> list[str]:
    if os.path.isdir(name):
        inside = glob.escape(name)
        found = [path for end in SHARD_SUFFIXES for path in glob.glob(os.path.join(inside, f"*{end}"))]
        if not found:
            raise ValueError(f"{name} is a folder without .tar files")
        return found
    if glob.has_magic(name) and not os.path.exists(name):
        found = glob.glob(name)
        if not found:
            raise ValueError(f"no file matches {name}")
        return found
    if not os.path.isfile(name):
        raise ValueError(f"{name}: no such shard")
    return [name]


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key that puts shard-9 before shard-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]
