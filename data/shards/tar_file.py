"""The bytes of a tar file, here or on a server, at any place."""

import errno
import os
import stat
from bisect import bisect_right, insort
from typing import Protocol

from packvit.common.stores.again import try_again
from packvit.common.stores.source import Changed, Hopeless, strong
from packvit.data.shards.download import GZIP_MAGIC
from packvit.data.shards.source import read_range

AHEAD = 8 * 1024  # bytes that are read at least: a header, a small member, and the beginning of an image
KEPT_BYTES = 64 * 2**20  # of what was read ahead


class TarBytes(Protocol):
    """Bytes at any place."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    def read_at(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end.

        Raises:
            OSError: they cannot be read, or it was changed.
        """
        ...


class LocalFile:
    """A descriptor, closed when nothing uses it any more, so a removed file can be read to its end.

    Attributes:
        identity: identifies the file, to notice that it was replaced or written to.
    """

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity = self.identify()
        if stat.S_ISDIR(os.fstat(self.descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def identify(self) -> tuple[int, int, int]:
        """The file's current identity: inode, size, time of modification in ns."""
        status = os.fstat(self.descriptor)
        return status.st_ino, status.st_size, status.st_mtime_ns

    @property
    def size(self) -> int:
        """See TarBytes."""
        return os.fstat(self.descriptor).st_size

    def read_at(self, size: int, offset: int) -> bytes:
        """See TarBytes."""
        return os.pread(self.descriptor, size, offset)

    def is_changed(self) -> bool:
        """Whether it was written to since it was opened."""
        return self.identify() != self.identity


class RemoteFile:
    """A file on a server that is read in parts; small parts are read together with what follows, and kept.

    Args:
        path: a path that `has_ranges`.
        timeout: seconds for each request.
        retries: retries of each request.

    Raises:
        OSError: it cannot be read.
        ValueError: it is gzipped.
    """

    def __init__(self, path: str, timeout: float, retries: int) -> None:
        self.path, self._timeout, self._retries = path, timeout, retries
        self._starts: list[int] = []
        self._pieces: dict[int, bytes] = {}
        self._tag: str | None = None
        self.beginning, self.facts = self._request(AHEAD, 0)
        if self.beginning.startswith(GZIP_MAGIC):
            raise ValueError("it is gzipped, so no part of it can be read by itself")
        self._size = int(self.facts["Content-Length"])
        self._tag = strong(self.facts)
        self._keep(0, self.beginning)

    @property
    def size(self) -> int:
        """See TarBytes."""
        return self._size

    def read_at(self, size: int, offset: int) -> bytes:
        """See TarBytes."""
        size = min(size, self._size - offset)
        if size <= 0:
            return b""
        place = bisect_right(self._starts, offset) - 1
        if place >= 0:
            start = self._starts[place]
            if offset + size <= start + len(self._pieces[start]):
                return self._pieces[start][offset - start : offset - start + size]
        data, _ = self._request(max(size, AHEAD), offset)
        if size < AHEAD:
            self._keep(offset, data)
        return data[:size]

    def is_changed(self) -> bool:
        """No: each request asks for the same contents as before."""
        return False

    def _request(self, size: int, offset: int) -> tuple[bytes, dict[str, str]]:
        def ask() -> tuple[bytes, dict[str, str]]:
            try:
                return read_range(self.path, offset, size, self._timeout, self._tag)
            except Changed as error:
                raise Hopeless(str(error)) from error

        return try_again(ask, self._retries)

    def _keep(self, offset: int, data: bytes) -> None:
        if len(self._starts) * AHEAD >= KEPT_BYTES:
            self._starts.clear()
            self._pieces.clear()
        if offset not in self._pieces:
            insort(self._starts, offset)
        self._pieces[offset] = data
