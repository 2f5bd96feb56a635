"""Shards: tar files of samples, read in any order through an index of byte offsets.

webdataset's conventions: the members of one sample stand side by side and share the name up to its first
dot, the rest is the field (`cat/01.jpg`, `cat/01.cls`). Through its index a sample, or only its header, is
one read at a known place.
"""

import io
import math
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from packvit.data.shards import fetch as fetch_module
from packvit.data.shards.fetch import FETCH, FetchConfig, local_file
from packvit.data.shards.index import Index, open_index
from packvit.data.shards.redact import redact

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp")
MEMORY_BYTES = 256 * 2**20  # of indices that a process keeps


class BadSample(ValueError):
    """One sample cannot be used; the message names shard, key and reason, without secrets."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        shard, reason = redact(shard), redact(reason)
        super().__init__(f"{shard}: sample {key!r}: {reason}")
        self.shard, self.key, self.reason = shard, key, reason


class UnknownLabel(BadSample):
    """One sample's label is none of the classes asked for."""


class BadShard(ValueError):
    """A whole shard cannot be used; the message names it and the reason, without secrets."""

    def __init__(self, shard: str, reason: str) -> None:
        shard, reason = redact(shard), redact(reason)
        super().__init__(f"{shard}: {reason}")
        self.shard, self.reason = shard, reason


class OpenFile:
    """A descriptor, closed when nothing uses it any more: a file that is removed can be read to its end.

    Attributes:
        identity: by which a file that was replaced, or written to, is told.
    """

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity = self.identify()

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def identify(self) -> tuple[int, int, int]:
        """What the file is now: inode, size, time of modification in ns."""
        status = os.fstat(self.descriptor)
        return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Known:
    """What a process keeps of a tar file: where it lies, what it was when it was indexed, and the index."""

    path: str
    identity: tuple[int, int, int]
    index: Index


class Shard:
    """One tar file; use `Shard.open`, which keeps what it knows of files in memory and on disk.

    Attributes:
        path: as it was given.
        problems: sentences about members that are lost, e.g. behind the place where a file is cut off.
        whole_bytes: up to where the tar is whole, if it breaks off; else None.
    """

    def __init__(self, path: str, file: OpenFile, index: Index) -> None:
        self.path = path
        self.problems = list(index.problems)
        self.whole_bytes = index.whole_bytes
        self._file = file
        self._index = index

    @staticmethod
    def open(path: str | Path, fetch: FetchConfig = FETCH) -> "Shard":
        """The shard, fetched if it is remote, and indexed.

        Raises:
            BadShard: it is missing, or no tar file.
        """
        path = str(path)
        try:
            file, index = _open(path, fetch)
        except OSError as error:
            raise BadShard(path, f"it cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise BadShard(path, str(error)) from error
        return Shard(path, file, index)

    def __len__(self) -> int:
        return len(self._index.key_ends)

    def key(self, index: int) -> str:
        """Name of a sample.

        Raises:
            BadShard: there are fewer samples, because the file was replaced since its number was taken.
        """
        if index >= len(self):
            raise BadShard(self.path, f"it has only {len(self)} samples now, so sample {index} is lost")
        ends = self._index.key_ends
        return self._index.keys[ends[index - 1] if index else 0 : ends[index]].decode()

    def fields(self, index: int) -> tuple[str, ...]:
        """The fields that a sample has, lower-case, without dots at their ends, in the order of the file."""
        return self._index.kinds[self._index.kind[index]]

    def read(self, index: int, field: str, size: int | None = None) -> bytes:
        """A field of a sample, or its first `size` bytes.

        Raises:
            BadSample: the sample lacks the field.
            BadShard: the file is gone or shorter than it was.
        """
        names = self.fields(index)
        if field not in names:
            raise BadSample(self.path, self.key(index), f"it has no .{field}")
        offset, length = self._index.spans[self._index.firsts[index] + names.index(field)].tolist()
        wanted = length if size is None else min(size, length)
        try:
            data = os.pread(self._file.descriptor, wanted, offset)
            changed = self._file.identify() != self._file.identity
        except OSError as error:
            raise BadShard(self.path, f"it cannot be read any more ({error.strerror})") from error
        if len(data) < wanted:
            raise BadShard(self.path, "it became shorter while it was read")
        if changed:
            raise BadShard(self.path, "it was written to while it was read")
        return data

    def image(self, index: int, size: int | None = None) -> bytes:
        """The encoded image of a sample, or its first `size` bytes; raises as `read` does."""
        return self.read(index, self._image_field(index), size)

    def array(self, index: int, field: str) -> np.ndarray:
        """The array in a .npy field; raises as `read` does.

        Raises:
            BadSample: the field is no such file.
        """
        data = self.read(index, field)
        try:
            return read_array(data)
        except ValueError as error:
            raise BadSample(self.path, self.key(index), f"its .{field} is no .npy file ({error})") from error

    def label(self, index: int, field: str = "cls") -> int | None:
        """Class index from a text field, None without one.

        Raises:
            BadSample: the field is not a whole number.
        """
        if field not in self.fields(index):
            return None
        text = self.read(index, field)
        try:
            return int(text)
        except ValueError as error:
            raise BadSample(self.path, self.key(index), f"its label {text[:40]!r} is no number") from error

    def _image_field(self, index: int) -> str:
        fields = self.fields(index)
        for field in fields:
            if field in IMAGE_FIELDS:
                return field
        raise BadSample(self.path, self.key(index), f"it has no image, only {', '.join(fields)}")


def read_array(data: bytes) -> np.ndarray:
    """The array of a .npy file; what its header says is believed only as far as there are bytes for it.

    Raises:
        ValueError: it is no such file, is cut off or longer than its array, or would have to be unpickled.
    """
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # a damaged header, a Python literal, raises nearly anything
        raise ValueError("its header is damaged") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    found = len(data) - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > found:
        raise ValueError(f"it has {found} bytes, too few for {dtype} {list(shape)}")
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if fortran else "C").copy()


_memory: OrderedDict[str, Known] = OrderedDict()  # by the path as it was given; used longest ago first


def _open(path: str, fetch: FetchConfig) -> tuple[OpenFile, Index]:
    known = _memory.get(path)
    # Fetched shards are asked for each time, which notes their use: the least used make way for others.
    local = path if known is not None and known.path == path else local_file(path, fetch)
    try:
        file = OpenFile(local)
    except FileNotFoundError:
        local = local_file(path, fetch)  # it made way for others in this moment
        file = OpenFile(local)
    if known is None or (known.path, known.identity) != (local, file.identity):
        with open(file.descriptor, "rb", closefd=False) as opened:
            known = Known(local, file.identity, open_index(opened, local))
        _memory[path] = known
        while len(_memory) > 1 and sum(kept.index.nbytes for kept in _memory.values()) > MEMORY_BYTES:
            _memory.popitem(last=False)
    _memory.move_to_end(path)
    return file, known.index


def forget() -> None:
    """Empty the memory of files; what is on disk stays."""
    _memory.clear()
    fetch_module.forget()
