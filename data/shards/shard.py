"""Shards: tar files of samples, read in any order through an index of byte offsets.

They follow webdataset's conventions: the members of one sample are adjacent and share the name up to its
first dot, and the rest is the field (`cat/01.jpg`, `cat/01.cls`). With the index, a sample or only its header
is one read at a known place.
"""

import os
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from packvit.common.stores.source import strong
from packvit.data.shards import fetch as fetch_module
from packvit.data.shards.arrays import read_array
from packvit.data.shards.beside import beside, decode
from packvit.data.shards.fetch import ASK_TIMEOUT, FETCH, FetchConfig, local_file
from packvit.data.shards.index import Index, open_index, place_of_index
from packvit.data.shards.redact import redact
from packvit.data.shards.source import has_ranges, read_range
from packvit.data.shards.tar_file import LocalFile, RemoteFile
from packvit.packing import derive_seed

INDEX_BYTES = 10**8  # of an index beside a shard
IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp")
MEMORY_BYTES = 256 * 2**20  # of indices that a process keeps


class BadSample(ValueError):
    """One sample cannot be used; the message names shard, key and reason, without secrets."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        shard, reason = redact(shard), redact(reason)
        super().__init__(f"{shard}: sample {key!r}: {reason}")
        self.shard, self.key, self.reason = shard, key, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.shard, self.key, self.reason)


class UnknownLabel(BadSample):
    """One sample's label is not one of the classes."""


class BadShard(ValueError):
    """A whole shard cannot be used; the message names it and the reason, without secrets."""

    def __init__(self, shard: str, reason: str) -> None:
        shard, reason = redact(shard), redact(reason)
        super().__init__(f"{shard}: {reason}")
        self.shard, self.reason = shard, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.shard, self.reason)


@dataclass(frozen=True)
class Known:
    """What a process remembers about a tar file: its path, its identity when it was indexed, and its
    index."""

    path: str
    identity: tuple[int, int, int]
    index: Index


class Shard:
    """One tar file; use `Shard.open`, which keeps what it knows about files in memory and on disk.

    Attributes:
        path: the path as given.
        problems: sentences about members that are lost, e.g. beyond the place where a file is cut off.
        whole_bytes: number of intact bytes if the tar breaks off, otherwise None.
        index, file: where its samples lie, and their bytes.
    """

    def __init__(self, path: str, file: LocalFile | RemoteFile, index: Index) -> None:
        self.path = path
        self.problems = list(index.problems)
        self.whole_bytes = index.whole_bytes
        self.index = index
        self.file = file

    @staticmethod
    def look(path: str | Path, fetch: FetchConfig = FETCH) -> "Shard":
        """Open a shard to read only little of it: on a server it is read in parts, if the server allows this.

        Raises:
            BadShard: it is missing, or not a tar file.
        """
        path = str(path)
        if not has_ranges(path):
            return Shard.open(path, fetch)
        try:
            return Shard(path, *_open_remote(path, fetch))
        except (OSError, ValueError):  # what cannot be read at all fails again, and says why
            return Shard.open(path, replace(fetch, cache_gb=fetch.cache_gb or FETCH.cache_gb))

    @staticmethod
    def open(path: str | Path, fetch: FetchConfig = FETCH) -> "Shard":
        """Open a shard, which is fetched if it is remote, and index it. With `fetch.cache_gb` 0 it is read in
        parts.

        Raises:
            BadShard: it is missing, or not a tar file.
        """
        path = str(path)
        try:
            in_place = fetch.cache_gb == 0 and has_ranges(path)
            file, index = _open_remote(path, fetch) if in_place else _open(path, fetch)
        except OSError as error:
            raise BadShard(path, f"it cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise BadShard(path, str(error)) from error
        return Shard(path, file, index)

    def __len__(self) -> int:
        return len(self.index.key_ends)

    def key(self, index: int) -> str:
        """Name of a sample.

        Raises:
            BadShard: there are fewer samples, because the file was replaced since its number was drawn.
        """
        if index >= len(self):
            raise BadShard(self.path, f"it has only {len(self)} samples now, so sample {index} is lost")
        ends = self.index.key_ends
        return self.index.keys[ends[index - 1] if index else 0 : ends[index]].decode()

    def fields(self, index: int) -> tuple[str, ...]:
        """The fields that a sample has, lower-case, without dots at their ends, in the order of the file."""
        return self.index.kinds[self.index.kind[index]]

    def read(self, index: int, field: str, size: int | None = None) -> bytes:
        """A field of a sample, or its first `size` bytes.

        Raises:
            BadSample: the sample lacks the field.
            BadShard: the file is gone or shorter than it was.
        """
        names = self.fields(index)
        if field not in names:
            raise BadSample(self.path, self.key(index), f"it has no .{field}")
        offset, length = self.index.spans[self.index.firsts[index] + names.index(field)].tolist()
        wanted = length if size is None else min(size, length)
        try:
            data = self.file.read_at(wanted, offset)
            changed = self.file.is_changed()
        except OSError as error:
            raise BadShard(self.path, f"it cannot be read any more ({error.strerror or error})") from error
        if len(data) < wanted:
            raise BadShard(self.path, "it became shorter while it was read")
        if changed:
            raise BadShard(self.path, "it was written to while it was read")
        return data

    @property
    def is_local(self) -> bool:
        """Whether reading a little more of it costs nothing."""
        return isinstance(self.file, LocalFile)

    def native_size(self, index: int) -> tuple[int, int] | None:
        """Upright height and width of a sample's image, if its index has them."""
        if self.index.sizes is None:
            return None
        height, width = self.index.sizes[index].tolist()
        return (height, width) if height and width else None

    def image(self, index: int, size: int | None = None) -> bytes:
        """The encoded image of a sample, or its first `size` bytes; raises like `read` does."""
        return self.read(index, self._image_field(index), size)

    def array(self, index: int, field: str) -> np.ndarray:
        """The array in a .npy field; raises like `read` does.

        Raises:
            BadSample: the field is not such a file.
        """
        data = self.read(index, field)
        try:
            return read_array(data)
        except ValueError as error:
            raise BadSample(
                self.path, self.key(index), f"its .{field} is not a .npy file ({error})"
            ) from error

    def label(self, index: int, field: str = "cls") -> int | None:
        """Class index from a text field, None if there is none.

        Raises:
            BadSample: the field is not a whole number.
        """
        if field not in self.fields(index):
            return None
        text = self.read(index, field)
        try:
            return int(text)
        except ValueError as error:
            raise BadSample(self.path, self.key(index), f"its label {text[:40]!r} is not a number") from error

    def _image_field(self, index: int) -> str:
        fields = self.fields(index)
        for field in fields:
            if field in IMAGE_FIELDS:
                return field
        raise BadSample(self.path, self.key(index), f"it has no image, only {', '.join(fields)}")


class Memory:
    """What a process remembers about the files that it used last, by the paths as they were given.

    Args:
        limit: bytes that their indices may have together; the newest is kept in any case.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clear()

    def get(self, path: str) -> Known | None:
        """What is known about a file."""
        return self._known.get(path)

    def put(self, path: str, known: Known) -> None:
        """Remember a file as the one used last; costs the same for any number of files."""
        before = self._known.pop(path, None)
        self._bytes += known.index.nbytes - (before.index.nbytes if before else 0)
        self._known[path] = known
        while self._bytes > self.limit and len(self._known) > 1:
            _, forgotten = self._known.popitem(last=False)
            self._bytes -= forgotten.index.nbytes

    def clear(self) -> None:
        """Forget all files."""
        self._known: OrderedDict[str, Known] = OrderedDict()  # used longest ago first
        self._bytes = 0


_memory = Memory(MEMORY_BYTES)


def _open(path: str, fetch: FetchConfig) -> tuple[LocalFile, Index]:
    known = _memory.get(path)
    # Fetched shards are asked for each time, which notes their use: the least used make way for others.
    local = path if known is not None and known.path == path else local_file(path, fetch)
    try:
        file = LocalFile(local)
    except FileNotFoundError:
        local = local_file(path, fetch)  # it made way for others in this moment
        file = LocalFile(local)
    if known is None or (known.path, known.identity) != (local, file.identity):
        _, size, modified = file.identity
        cache = place_of_index(os.path.abspath(local), size, modified)
        known = Known(local, file.identity, open_index(file, cache))
    _memory.put(path, known)
    return file, known.index


def _open_remote(path: str, fetch: FetchConfig) -> tuple[RemoteFile, Index]:
    """A shard on a server that is read in place, and its index: that beside it, or from its headers."""
    timeout = min(ASK_TIMEOUT, fetch.timeout)
    file = RemoteFile(path, timeout, fetch.retries)
    tag = strong(file.facts)
    identity = (derive_seed(tag or ""), file.size, 0)
    name = f"in place: {path}"  # a copy of it may be known, too
    known = _memory.get(name)
    if known is None or known.identity != identity or tag is None:
        try:
            data, _ = read_range(beside(path), 0, INDEX_BYTES, fetch.timeout)
        except (OSError, ValueError):
            data = b""
        index = decode(data, file.beginning, file.size) if data else None
        if index is None:
            index = open_index(file, place_of_index(path, file.size, tag) if tag else None)
        known = Known(path, identity, index)
    _memory.put(name, known)
    return file, known.index


def forget() -> None:
    """Forget all files in memory; files on disk are kept."""
    _memory.clear()
    fetch_module.forget()
