"""Shards: tar files of samples, read in any order through an index of byte offsets.

webdataset's conventions: the members of one sample stand side by side and share the name up to its first
dot, the rest is the field (`cat/01.jpg`, `cat/01.cls`). Through its index a sample, or only its header, is
one read at a known place.
"""

import glob
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from braceexpand import braceexpand

from packvit.data.decode import native_size_of
from packvit.data.fetch import GZIP_SUFFIXES, FetchConfig, is_remote, local_file
from packvit.data.index import Index, open_index

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp")
FETCH = FetchConfig()
SHARD_SUFFIXES = (".tar", *GZIP_SUFFIXES)
HEAD_BYTES = 16 * 1024  # enough for the header of nearly every image


class BadSample(ValueError):
    """One sample cannot be used; the message names shard, key and reason."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(f"{shard}: sample {key!r}: {reason}")
        self.shard, self.key, self.reason = shard, key, reason


class BadShard(ValueError):
    """A whole shard cannot be used; the message names it and the reason."""

    def __init__(self, shard: str, reason: str) -> None:
        super().__init__(f"{shard}: {reason}")
        self.shard, self.reason = shard, reason


def expand_shards(patterns: str | Sequence[str]) -> list[str]:
    """Shards in natural order, from paths, brace patterns, globs, folders, and URLs that gopen knows.

    Raises:
        ValueError: a pattern matches nothing, a file is missing, or a file is named twice.
    """
    paths: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in braceexpand(pattern):
            if is_remote(name):
                paths.append(name)
                continue
            if os.path.isdir(name):
                inside = glob.escape(name)
                found = [
                    path for end in SHARD_SUFFIXES for path in glob.glob(os.path.join(inside, f"*{end}"))
                ]
                if not found:
                    raise ValueError(f"{name} is a folder without .tar files")
            elif glob.has_magic(name) and not os.path.exists(name):
                found = glob.glob(name)
                if not found:
                    raise ValueError(f"no file matches {name}")
            elif os.path.isfile(name):
                found = [name]
            else:
                raise ValueError(f"{name}: no such shard")
            paths += sorted(found, key=_natural)
    if not paths:
        raise ValueError("no shards are named")
    seen: set[str] = set()
    for path in paths:
        if (absolute := path if is_remote(path) else os.path.abspath(path)) in seen:
            raise ValueError(f"{path} is named twice")
        seen.add(absolute)
    return paths


class Shard:
    """One tar file; use `Shard.open`, which keeps indices in memory and on disk.

    Attributes:
        path: as it was given.
        problems: sentences about members that are lost, e.g. behind the place where a file is cut off.
    """

    def __init__(self, path: str, file: str, index: Index) -> None:
        self.path = path
        self._file = file
        self.problems = list(index.problems)
        self._index = index

    @staticmethod
    def open(path: str | Path, fetch: FetchConfig = FETCH) -> "Shard":
        """The shard, fetched if it is remote, and indexed.

        Raises:
            BadShard: it is missing, or no tar file.
        """
        try:
            file = local_file(str(path), fetch)
            status = os.stat(file)
            return Shard(str(path), file, open_index(file, status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise BadShard(str(path), f"it cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise BadShard(str(path), str(error)) from error

    def __len__(self) -> int:
        return len(self._index)

    def key(self, index: int) -> str:
        """Name of a sample.

        Raises:
            BadShard: there are fewer samples, because the file was replaced since its number was taken.
        """
        if index >= len(self):
            raise BadShard(self.path, f"it has only {len(self)} samples now, so sample {index} is lost")
        return self._index.key(index)

    def fields(self, index: int) -> tuple[str, ...]:
        """The fields that a sample has, lower-case, without dots at their ends."""
        return self._index.fields(index)

    def read(self, index: int, field: str, size: int | None = None) -> bytes:
        """A field of a sample, or its first `size` bytes.

        Raises:
            BadSample: the sample lacks the field.
            BadShard: the file is gone or shorter than it was.
        """
        span = self._index.span(index, field)
        if span is None:
            raise BadSample(self.path, self.key(index), f"it has no .{field}")
        offset, length = span
        wanted = length if size is None else min(size, length)
        try:
            handle = os.open(self._file, os.O_RDONLY)
            try:
                data = os.pread(handle, wanted, offset)
            finally:
                os.close(handle)
        except OSError as error:
            raise BadShard(self.path, f"it cannot be read any more ({error.strerror})") from error
        if len(data) < wanted:
            raise BadShard(self.path, "it became shorter while it was read")
        return data

    def image(self, index: int) -> bytes:
        """The encoded image of a sample; raises as `read` does."""
        return self.read(index, self._image_field(index))

    def native_size(self, index: int) -> tuple[int, int]:
        """Upright height and width of a sample's image, from its header.

        Raises:
            BadSample: there is no image, or its header cannot be read.
        """
        field = self._image_field(index)
        head = self.read(index, field, HEAD_BYTES)
        try:
            return native_size_of(head)
        except ValueError:
            # Some headers are long, and some formats want the whole file.
            whole = self.read(index, field)
        try:
            return native_size_of(whole)
        except ValueError as error:
            raise BadSample(self.path, self.key(index), str(error)) from error

    def array(self, index: int, field: str) -> np.ndarray:
        """The array in a .npy field; raises as `read` does.

        Raises:
            BadSample: the field is no such file.
        """
        data = self.read(index, field)
        try:
            return np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise BadSample(self.path, self.key(index), f"its .{field} is no .npy file") from error

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


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key that puts shard-9 before shard-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]
