"""Copy a remote or gzipped shard to a file: watched, tried again, and checked to be a whole tar."""

import gzip
import os
import random
import tarfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from packvit.data.shards.source import Hopeless, Source, open_source

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 64 * 1024  # bytes
BACKOFF = 1.0  # seconds before the second attempt; then twice as long before each
TICKS = 8  # looks at the progress in each `timeout`

Grown = Callable[[int], None]  # called with the bytes of a file after every chunk; may raise


def download(path: str, target: Path, timeout: float, slowest: float, grown: Grown) -> dict[str, str]:
    """Copy a source to `target`; returns its facts (see Source).

    Args:
        timeout: seconds.
        slowest: bytes a second; fewer over `timeout` seconds count as a stall.

    Raises:
        OSError: it cannot be read, or not to its end.
        TimeoutError: it stalls.
    """
    copy = _Copy(path, target, timeout, grown)
    copy.start()
    history = deque([0], maxlen=TICKS + 1)
    while not copy.done.wait(timeout / TICKS):
        history.append(copy.bytes)
        came = history[-1] - history[0]
        if len(history) > TICKS and came < slowest * timeout:
            copy.give_up()
            what = f"only {came} bytes" if came else "no byte"
            raise TimeoutError(f"{what} came in {timeout:g} s, after {copy.bytes - came}")
    if isinstance(copy.error, ValueError):
        raise copy.error
    if copy.error is not None:
        kind = Hopeless if isinstance(copy.error, Hopeless) else OSError
        raise kind(str(copy.error)) from copy.error
    if not copy.bytes:
        raise OSError("its source is empty")
    return copy.facts


class _Copy(threading.Thread):
    """Copies in the background, because nothing can end a read that hangs."""

    def __init__(self, path: str, target: Path, timeout: float, grown: Grown) -> None:
        super().__init__(daemon=True)
        self.path, self.target, self.timeout, self.grown = path, target, timeout, grown
        self.done = threading.Event()
        self.bytes = 0
        self.facts: dict[str, str] = {}
        self.error: Exception | None = None
        self._source: Source | None = None
        self._given_up = False

    def run(self) -> None:
        """Copy to the end, or to the first error."""
        try:
            with self.target.open("wb") as file:
                self._source = open_source(self.path, self.timeout)
                while not self._given_up and (chunk := self._source.read(CHUNK)):
                    file.write(chunk)
                    self.bytes += len(chunk)
                    self.grown(self.bytes)
                self.facts = self._source.facts
        except Exception as error:
            self.error = error
        finally:
            if self._source is not None:
                self._source.close()
            self.done.set()

    def give_up(self) -> None:
        """End it, now or soon."""
        self._given_up = True
        if self._source is not None:
            self._source.kill()


def unzip(file: Path, grown: Grown) -> None:
    """Replace a gzipped file by what is in it; others stay.

    Raises:
        ValueError: it is no whole gzip file.
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
    """Check that a file begins as a tar does, and is no page that asks to log in.

    Args:
        to_its_end: check its end, too: nothing else tells whether all of it came.

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
            raise ValueError(f"it is no readable tar file ({what})") from error
    if to_its_end and not whole_size(file):
        raise ConnectionError("it breaks off, and its server does not say how long it is")


def whole_size(path: str | Path) -> int | None:
    """Bytes of a local file that ends as a tar does; None for others."""
    with suppress(OSError), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size >= len(END_OF_TAR):
            file.seek(size - len(END_OF_TAR))
            return size if file.read() == END_OF_TAR else None
    return None


def try_again(attempt: Callable[[], None], retries: int) -> None:
    """Make an attempt, and at most `retries` more after pauses that grow, where it fails.

    Raises:
        OSError, ValueError: what the last attempt raised, or one whose failure is for good.
    """
    for number in range(retries):
        try:
            return attempt()
        except Hopeless:
            raise
        except (OSError, ValueError):
            # Many workers lose their connections at once: they should not all come back at once.
            time.sleep(BACKOFF * 2**number * random.uniform(0.5, 1.5))
    return attempt()
