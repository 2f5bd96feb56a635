"""The index of a tar file: where each field of each sample lies, built once and kept on disk.

To build it, the tar's headers are read one after another. It is stored in columns, some 60 bytes a sample,
because a run on thousands of shards has many of them open at once.
"""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from webdataset.tariterators import base_plus_ext

from packvit.common.files import cache_path, write_nameless
from packvit.data.shards.tar_file import TarBytes
from packvit.packing import derive_seed

INDEX_VERSION = 4
CHUNK = 2**20  # bytes
OBJECTS = 1500  # bytes of an index without any sample

Samples = list[tuple[str, dict[str, tuple[int, int]]]]  # (key, {field: (offset, length)})


@dataclass(frozen=True)
class Index:
    """Samples of a tar file in columns; n samples with m fields in all.

    Args:
        keys: all keys, UTF-8, one after the other.
        key_ends: int64 [n], where each key ends in `keys`.
        kinds: the sets of fields that occur; nearly always one.
        kind: int32 [n], each sample's place in `kinds`.
        firsts: int64 [n], place of each sample's first field in `spans`.
        spans: int64 [m, 2], offset and length of each field in the file.
        problems: sentences about members that are lost.
        whole_bytes: number of intact bytes if the tar breaks off, otherwise None.
        sizes: int32 [n, 2], native heights and widths of the images, 0 if unknown; None if they have not been
            read.
    """

    keys: bytes
    key_ends: np.ndarray
    kinds: tuple[tuple[str, ...], ...]
    kind: np.ndarray
    firsts: np.ndarray
    spans: np.ndarray
    problems: tuple[str, ...] = field(default=())
    whole_bytes: int | None = None
    sizes: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        columns = (self.key_ends, self.kind, self.firsts, self.spans, self.sizes)
        return OBJECTS + len(self.keys) + sum(column.nbytes for column in columns if column is not None)

    @staticmethod
    def of(samples: Samples, problems: Sequence[str] = (), whole_bytes: int | None = None) -> "Index":
        """Make an index from samples."""
        encoded = [key.encode() for key, _ in samples]
        kinds: dict[tuple[str, ...], int] = {}
        kind = [kinds.setdefault(tuple(fields), len(kinds)) for _, fields in samples]
        counts = np.array([len(fields) for _, fields in samples], np.int64)
        spans = [span for _, fields in samples for span in fields.values()]
        return Index(
            keys=b"".join(encoded),
            key_ends=np.cumsum(np.array([len(key) for key in encoded], np.int64)),
            kinds=tuple(kinds),
            kind=np.array(kind, np.int32),
            firsts=np.cumsum(counts) - counts,
            spans=np.array(spans, np.int64).reshape(-1, 2),
            problems=tuple(problems),
            whole_bytes=whole_bytes,
        )

    def save(self, path: Path) -> None:
        """Write it to `path`, whole or not at all."""
        arrays = {
            "keys": np.frombuffer(self.keys, np.uint8),
            "key_ends": self.key_ends,
            "kind": self.kind,
            "firsts": self.firsts,
            "spans": self.spans,
            "text": np.array(json.dumps([self.kinds, self.problems, self.whole_bytes])),
        }
        # Without it the next process walks the headers again.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_nameless(path, lambda file: np.savez(file, **arrays))

    @staticmethod
    def load(path: Path) -> "Index | None":
        """The index that `save` wrote; None if it is missing or damaged."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                kinds, problems, whole_bytes = json.loads(str(stored["text"]))
                columns = {name: stored[name] for name in ("key_ends", "kind", "firsts", "spans")}
                keys = stored["keys"].tobytes()
        except Exception:  # a damaged file can raise nearly anything, and is made again
            return None
        kinds = tuple(map(tuple, kinds))
        return Index(keys=keys, kinds=kinds, problems=tuple(problems), whole_bytes=whole_bytes, **columns)


def open_index(file: TarBytes, cache: Path | None) -> Index:
    """The index of a tar file, from disk or from the file.

    Args:
        cache: where it is stored; None does not store it.

    Raises:
        ValueError: it is not a tar file.
    """
    index = Index.load(cache) if cache else None
    if index is None:
        index = build_index(file)
        if cache:
            index.save(cache)
    return index


def drop_index(path: Path) -> None:
    """Remove the index, if there is one, of a tar file that is about to be removed."""
    with suppress(OSError):
        status = path.stat()
        place_of_index(os.path.abspath(path), status.st_size, status.st_mtime_ns).unlink()


def place_of_index(*parts: str | int) -> Path:
    """Where the index of a file is stored; `parts` identify the file: its path, size and time or ETag."""
    # A file that was replaced has others, and so is indexed anew.
    return cache_path("index") / f"{derive_seed(INDEX_VERSION, *parts):032x}.npz"


def build_index(file: TarBytes) -> Index:
    """Make the index of a tar file from its headers.

    Raises:
        ValueError: it is not a tar file.
    """
    samples: Samples = []
    problems: list[str] = []
    name: str | None = None
    offset = length = 0
    whole_bytes: int | None = None
    try:
        members = plain_members(file)
        for name, offset, length in all_members(file) if members is None else members:
            base, extension = base_plus_ext(name)
            # A base that ends in a slash belongs to a hidden file, such as macOS's `._01.jpg`.
            if not base or base.endswith("/") or not extension:
                continue
            extension = extension.lower()
            if not samples or samples[-1][0] != base:
                samples.append((base, {}))
            if extension in samples[-1][1]:
                problems.append(f"member {name!r} is there twice: the first one is used")
            else:
                samples[-1][1][extension] = (offset, length)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        if name is None:
            raise ValueError(f"it is not a readable tar file ({error})") from error
        problems.append(f"it breaks off in or after {name!r} ({error}): what follows is lost")
        samples = samples[:-1]  # the last sample may lack members, or the end of one
        end = offset + tarfile.BLOCKSIZE * -(-length // tarfile.BLOCKSIZE)
        whole_bytes = end if end <= file.size else offset
    return Index.of(samples, problems, whole_bytes)


class Bounded:
    """A file for tarfile, which would otherwise allocate as many bytes as a damaged header names."""

    def __init__(self, file: TarBytes) -> None:
        self.file, self.end, self.at = file, file.size, 0

    def seek(self, offset: int) -> int:
        """Go there."""
        self.at = offset
        return offset

    def tell(self) -> int:
        """Where it is."""
        return self.at

    def read(self, size: int) -> bytes:
        """At most what is left of the file.

        Raises:
            tarfile.ReadError: `size` is below zero.
        """
        if size < 0:
            raise tarfile.ReadError("a size below zero")
        data = self.file.read_at(max(0, min(size, self.end - self.at)), self.at)
        self.at += len(data)
        return data


def all_members(file: TarBytes) -> Iterator[tuple[str, int, int]]:
    """(name, offset, length) of the regular files of any tar, by tarfile; some 30 us each.

    Another archive may follow the end of one, as in `cat a.tar b.tar`, and is read, too. Sparse files are
    left out.

    Raises:
        tarfile.TarError, OSError, ValueError, OverflowError, RecursionError: it is damaged from here on.
    """
    bounded: Any = Bounded(file)
    start: int | None = 0
    while start is not None:
        bounded.seek(start)
        # Names in another encoding become escapes, because keys must be printable and hashable as UTF-8.
        with tarfile.open(fileobj=bounded, mode="r:", encoding="utf-8", errors="backslashreplace") as tar:
            for member in tar:
                # Older versions of tarfile follow a size below zero back, and so for ever.
                if member.size < 0 or tar.offset <= start:
                    raise tarfile.ReadError("a size below zero")
                start = tar.offset
                if member.isfile() and not member.issparse():
                    yield member.name, member.offset_data, member.size
        # tarfile takes a broken header, or none, for the end of the archive; the end is a block of zeros.
        if file.read_at(tarfile.BLOCKSIZE, tar.offset) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end of archive")
        start = next_archive(file, tar.offset)


def next_archive(file: TarBytes, offset: int) -> int | None:
    """The offset of the first nonzero block from `offset` on; None if there is none."""
    while chunk := file.read_at(CHUNK, offset):
        zeros = len(chunk) - len(chunk.lstrip(tarfile.NUL))
        if zeros < len(chunk):
            return offset + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        offset += len(chunk)
    return None


def plain_members(file: TarBytes) -> list[tuple[str, int, int]] | None:
    """The same as `all_members`, but several times as fast, for a tar of regular files with plain ustar
    headers.

    Nearly all shards are of this kind. None if there is anything else, or any doubt.
    """
    members = []
    offset, end = 0, file.size
    while len(header := file.read_at(tarfile.BLOCKSIZE, offset)) == tarfile.BLOCKSIZE:
        if not header.strip(tarfile.NUL):
            following = next_archive(file, offset)
            if following is None:
                return members
            offset = following
            continue
        try:
            name = header[:100].split(b"\0", 1)[0].decode()
            prefix = header[345:500].split(b"\0", 1)[0].decode()
            length = int(header[124:136].rstrip(b" \0"), 8)
            checksum = int(header[148:156].rstrip(b" \0"), 8)
        except ValueError:  # another encoding, a large size in base 256, damage
            return None
        plain = header[156:157] in (b"0", b"\0") and header[257:262] == b"ustar" and length >= 0
        # The checksum counts its own eight bytes as spaces.
        if not plain or checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        if prefix:
            name = f"{prefix}/{name}"
        if not name or name.endswith("/"):  # an old way to mark folders
            return None
        members.append((name, offset + tarfile.BLOCKSIZE, length))
        offset += tarfile.BLOCKSIZE * (1 + -(-length // tarfile.BLOCKSIZE))
        if offset > end:
            return None
    return None
