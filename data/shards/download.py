"""Copy a remote or gzipped shard to a file, with time limits, retries and a check that it is a whole tar."""

import gzip
import os
import tarfile
import threading
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from webdataset.gopen import rewrite_url  # pyright: ignore[reportAttributeAccessIssue]

from packvit.common.stores.objects import PIECE, ObjectCopy, is_object
from packvit.common.stores.partial import Partial
from packvit.common.stores.source import Changed, Hopeless, Source, strong
from packvit.data.shards.source import open_source

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 64 * 1024  # bytes
TICKS = 8  # looks at the progress in each `timeout`

Grown = Callable[[int], None]  # called with the bytes of a file after every chunk; may raise


def download(path: str, partial: Partial, timeout: float, slowest: float, grown: Grown) -> dict[str, str]:
    """Copy a source to a file, continuing where an earlier attempt broke off if the contents are still the
    same.

    Args:
        path: path of the source.
        partial: the file, and what is known about its content.
        timeout: seconds.
        slowest: bytes a second; fewer over `timeout` seconds count as a stall.
        grown: called with the number of bytes in the file after every chunk.

    Returns:
        The source's facts.

    Raises:
        OSError: it cannot be read, or not completely.
        TimeoutError: it stalls.
    """
    # A piece may lie between two looks at the progress.
    piece = min(PIECE, max(1, int(slowest * timeout / TICKS)))
    copy = _Copy(path, partial, timeout, grown, piece)
    copy.start()
    history = deque([0], maxlen=TICKS + 1)
    while not copy.done.wait(timeout / TICKS):
        history.append(copy.bytes)
        came = history[-1] - history[0]
        if len(history) > TICKS and came < slowest * timeout:
            copy.give_up()
            what = f"only {came} bytes" if came else "no byte"
            raise TimeoutError(f"{what} came in {timeout:g} s, after {copy.bytes - came}")
    if isinstance(copy.error, Changed):
        partial.drop()
    if isinstance(copy.error, ValueError | ImportError):
        raise copy.error
    if copy.error is not None:
        kind = Hopeless if isinstance(copy.error, Hopeless) else OSError
        raise kind(str(copy.error)) from copy.error
    if not copy.bytes:
        raise OSError("its source is empty")
    return partial.facts


class _Copy(threading.Thread):
    """Copies in the background, because nothing can end a read that hangs.

    Attributes:
        bytes: that came.
    """

    def __init__(self, path: str, partial: Partial, timeout: float, grown: Grown, piece: int) -> None:
        super().__init__(daemon=True)
        self.piece = piece
        self.path, self.partial, self.timeout, self.grown = path, partial, timeout, grown
        self.done = threading.Event()
        self.bytes = 0
        self.error: Exception | None = None
        self._source: Source | ObjectCopy | None = None
        self._given_up = False
        self._writing = threading.Lock()

    def run(self) -> None:
        """Copy to the end, or to the first error."""
        try:
            self._copy()
        except Exception as error:
            self.error = error
        finally:
            if self._source is not None:
                self._source.close()
            self.done.set()

    def _copy(self) -> None:
        kept, tag = self.partial.kept(), strong(self.partial.facts)
        path = rewrite_url(self.path)
        if is_object(path):
            self._copy_object(path, kept, tag)
            return
        self._source = source = open_source(self.path, self.timeout, kept, tag)
        if source.start and strong(source.facts) != tag:
            raise Changed("it was changed while it was read")
        with self._writing:
            if self._given_up:  # the next attempt may write to the file by now
                return
            file = self.partial.path.open("r+b" if source.start else "wb")
            self.partial.facts = source.facts
        with file:
            file.truncate(source.start)
            size = file.seek(source.start)
            while chunk := source.read(CHUNK):
                with self._writing:
                    if self._given_up:
                        return
                    file.write(chunk)
                    file.flush()
                size += len(chunk)
                self._count(len(chunk), size)

    def _copy_object(self, path: str, kept: int, tag: str | None) -> None:
        self._source = copy = ObjectCopy(path, self.partial.path, self.timeout, kept, tag, self.piece)
        with self._writing:
            if self._given_up:
                return
        self.partial.facts = copy.begin()
        for length in copy.lengths():
            kept += length
            self._count(length, kept)

    def _count(self, came: int, size: int) -> None:
        self.bytes += came
        self.grown(size)

    def give_up(self) -> None:
        """End it, now or soon."""
        with self._writing:
            self._given_up = True
        if self._source is not None:
            self._source.kill()


def unzip(file: Path, grown: Grown) -> None:
    """Replace a gzipped file by its content; leave other files unchanged.

    Raises:
        ValueError: it is not a whole gzip file.
    """
    with file.open("rb") as start:
        if start.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
            return
    unpacked = file.with_suffix(".unpacked")
    try:
        with gzip.open(file) as source, unpacked.open("wb") as out:
            size = 0
            while chunk := source.read(CHUNK):
                out.write(chunk)
                size += len(chunk)
                grown(size)
        os.replace(unpacked, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"it is a broken gzip file ({error})") from error
    finally:
        unpacked.unlink(missing_ok=True)


def check_tar(file: Path, to_its_end: bool) -> None:
    """Check that a file begins like a tar and is not a login page.

    Args:
        to_its_end: check its end, too, if nothing else says whether it is complete.

    Raises:
        ValueError: it does not.
        ConnectionError: it lacks the end.
    """
    with file.open("rb") as opened:
        block = opened.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.TarError as error:
        page = block.lstrip()[:1] == b"<"
        what = "a page of HTML or XML" if page else str(error)
        if block != bytes(tarfile.BLOCKSIZE):  # as an empty tar begins
            raise ValueError(f"it is not a readable tar file ({what})") from error
    if to_its_end and not whole_size(file):
        raise ConnectionError("it breaks off, and its server does not say how long it is")


def whole_size(path: str | Path) -> int | None:
    """Size of a local file that ends like a tar; None for others."""
    with suppress(OSError), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size >= len(END_OF_TAR):
            file.seek(size - len(END_OF_TAR))
            return size if file.read() == END_OF_TAR else None
    return None
