"""Shards: tar files of samples, read in any order through an index of byte offsets.

webdataset's conventions: the members of one sample stand side by side and share the name up to its first
dot, the rest is the field (`cat/01.jpg`, `cat/01.cls`). The index is built by walking the tar's headers
once and kept in a cache folder, so that a sample, or only its header, is one read at a known place.
"""

import functools
import glob
import json
import os
import re
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from braceexpand import braceexpand
from webdataset.tariterators import base_plus_ext

from packvit.data.decode import native_size_of
from packvit.packing import derive_seed

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp")
HEAD_BYTES = 16 * 1024  # enough for the header of nearly every image
INDEX_VERSION = 2


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
    """Paths of tar files, in natural order, from paths, brace patterns, globs and folders.

    Raises:
        ValueError: a pattern matches nothing, a file is missing, or a file is named twice.
    """
    paths: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in braceexpand(pattern):
            if os.path.isdir(name):
                found = glob.glob(os.path.join(glob.escape(name), "*.tar"))
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
        if (absolute := os.path.abspath(path)) in seen:
            raise ValueError(f"{path} is named twice")
        seen.add(absolute)
    return paths


class Shard:
    """One tar file; use `Shard.open`, which keeps indices in memory and on disk.

    Attributes:
        path: as it was given.
        problems: sentences about members that are lost, e.g. behind the place where a file is cut off.
    """

    def __init__(self, path: str, samples: list[tuple[str, dict[str, tuple[int, int]]]], problems: list[str]):
        self.path = path
        self.problems = problems
        self._samples = samples

    @staticmethod
    def open(path: str | Path) -> "Shard":
        """The shard, indexed.

        Raises:
            BadShard: it is missing, or no tar file.
        """
        try:
            status = os.stat(path)
        except OSError as error:
            raise BadShard(str(path), f"it cannot be read ({error.strerror})") from error
        return _open_indexed(str(path), status.st_size, status.st_mtime_ns)

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, index: int) -> str:
        """Name of a sample.

        Raises:
            BadShard: there are fewer samples, because the file was replaced since its number was taken.
        """
        if index >= len(self._samples):
            raise BadShard(self.path, f"it has only {len(self)} samples now, so sample {index} is lost")
        return self._samples[index][0]

    def fields(self, index: int) -> tuple[str, ...]:
        """The fields that a sample has, lower-case, without dots at their ends."""
        return tuple(self._samples[index][1])

    def read(self, index: int, field: str, size: int | None = None) -> bytes:
        """A field of a sample, or its first `size` bytes.

        Raises:
            BadSample: the sample lacks the field.
            BadShard: the file is gone or shorter than it was.
        """
        key, fields = self._samples[index]
        if field not in fields:
            raise BadSample(self.path, key, f"it has no .{field}")
        offset, length = fields[field]
        wanted = length if size is None else min(size, length)
        try:
            handle = os.open(self.path, os.O_RDONLY)
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

    def label(self, index: int) -> int | None:
        """Class index from the field `cls`, None without one.

        Raises:
            BadSample: the field is not a whole number.
        """
        if "cls" not in self._samples[index][1]:
            return None
        text = self.read(index, "cls")
        try:
            return int(text)
        except ValueError as error:
            raise BadSample(self.path, self.key(index), f"its label {text[:40]!r} is no number") from error

    def _image_field(self, index: int) -> str:
        key, fields = self._samples[index]
        for field in fields:
            if field in IMAGE_FIELDS:
                return field
        raise BadSample(self.path, key, f"it has no image, only {', '.join(fields)}")


@functools.lru_cache(maxsize=512)
def _open_indexed(path: str, size: int, mtime_ns: int) -> Shard:
    # The modification time is part of the key, so a file that was replaced is indexed anew.
    cache = _cache_folder() / f"{_digest(os.path.abspath(path), size, mtime_ns)}.json"
    try:
        stored = json.loads(cache.read_text())
        samples = [(key, {f: (o, n) for f, (o, n) in fields.items()}) for key, fields in stored["samples"]]
        return Shard(path, samples, stored["problems"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not there yet, or damaged: made again
    samples, problems = _build_index(path)
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"samples": samples, "problems": problems}))
        os.replace(partial, cache)
    except OSError:
        # Without a cache the next process walks the headers again.
        with suppress(OSError):
            partial.unlink()
    return Shard(path, samples, problems)


def _build_index(path: str) -> tuple[list[tuple[str, dict[str, tuple[int, int]]]], list[str]]:
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    problems: list[str] = []
    name: str | None = None
    try:
        # Names in another encoding become escapes, because keys must be printable and hashable as UTF-8.
        with (
            open(path, "rb") as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace") as tar,
        ):
            for member in tar:
                name = member.name
                base, field = base_plus_ext(name)
                # A base that ends in a slash belongs to a hidden file, such as macOS's `._01.jpg`.
                if not member.isfile() or not base or base.endswith("/") or not field:
                    continue
                field = field.lower()
                if not samples or samples[-1][0] != base:
                    samples.append((base, {}))
                if field in samples[-1][1]:
                    problems.append(f"member {name!r} is there twice: the first one is used")
                else:
                    samples[-1][1][field] = (member.offset_data, member.size)
            # tarfile takes a broken header, or none, for the end of the archive; the end is a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("no end of archive")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if name is None:
            raise BadShard(path, f"it is no readable tar file ({error})") from error
        problems.append(f"it breaks off in or after {name!r} ({error}): what follows is lost")
        samples = samples[:-1]  # the last sample may lack members, or the end of one
    return samples, problems


def _cache_folder() -> Path:
    if folder := os.environ.get("PACKVIT_CACHE"):
        return Path(folder) / "index"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packvit" / "index"


def _digest(*parts: object) -> str:
    return f"{derive_seed(INDEX_VERSION, *map(str, parts)):032x}"


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key that puts shard-9 before shard-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]
