"""The source of a remote shard's bytes: a web server, an object store or a command.

`pipe:COMMAND` and the schemes of `COMMANDS` are read by a program in a process group of its own, so that it
can be ended with all processes that it started. Unknown schemes are left to webdataset's gopen.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from webdataset.gopen import gopen, gopen_schemes, rewrite_url  # pyright: ignore[reportAttributeAccessIssue]

from packvit.common.stores.objects import is_object, read_object
from packvit.common.stores.source import Gone, Hopeless, Source
from packvit.data.stores.web import WebSource, read_web, web_facts

COMMANDS = {
    "ais": ("ais", "get"),
    "sftp": ("curl", "-f", "-s", "-S", "-L"),
    "ftps": ("curl", "-f", "-s", "-S", "-L"),
    "scp": ("curl", "-f", "-s", "-S", "-L"),
}
AFTER = {"ais": ("-",)}
CUT_BY_READER = 141  # 128 + SIGPIPE: something inside the command stopped reading early, as `head` does

# Runs a command beside a watcher that kills their process group when this process is gone, however it ended:
# then the other end of the watcher's input closes.
WATCHED = 'exec 3<&0 </dev/null; { read -r _; kill -9 0; } <&3 >/dev/null 2>&1 & exec 3<&-; exec "$@"'


class CommandSource:
    """The output of a command; all processes that it started end with it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.facts: dict[str, str] = {}
        self.start = 0
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", WATCHED, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def read(self, size: int) -> bytes:
        """See Source."""
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), size)
        if not data and self._process.wait() not in (0, CUT_BY_READER):
            raise OSError(f"its command ended with exit status {self._process.returncode}")
        return data

    def kill(self) -> None:
        """See Source."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """See Source."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class FileSource:
    """A local file, or anything that webdataset opens."""

    def __init__(self, file: Any) -> None:
        self.facts: dict[str, str] = {}
        self.start = 0
        self._file = file

    def read(self, size: int) -> bytes:
        """See Source."""
        return self._file.read(size)

    def kill(self) -> None:
        """See Source."""
        process = getattr(self._file, "proc", None)
        if process is not None:
            process.kill()

    def close(self) -> None:
        """See Source."""
        self.kill()
        self._file.close()


def is_remote(path: str) -> bool:
    """Whether it is not a local file."""
    return path.startswith("pipe:") or "://" in path


def is_web(path: str) -> bool:
    """Whether it is on a web server."""
    return path.lower().startswith(("http:", "https:", "hf:"))


def has_ranges(path: str) -> bool:
    """Whether parts of it can be requested."""
    return is_web(path) or is_object(path)


def open_source(path: str, timeout: float, start: int = 0, etag: str | None = None) -> Source:
    """The source of a shard that is not an object in a store (see ObjectCopy).

    Args:
        path: path of a local file, or URL.
        timeout: seconds that a server has to answer.
        start: the first byte that is needed; the source may begin at 0 nevertheless.
        etag: ETag of the contents that are needed, if `start` is not 0.
    """
    if not is_remote(path):
        return FileSource(open(path, "rb"))
    path = rewrite_url(path)
    scheme = path.partition(":")[0].lower()
    if path.startswith("pipe:"):
        return CommandSource(["/bin/sh", "-c", path.removeprefix("pipe:")])
    if is_web(path):
        return WebSource(path, timeout, start, etag)
    if scheme in COMMANDS:
        return CommandSource([*COMMANDS[scheme], path, *AFTER.get(scheme, ())])
    if scheme not in gopen_schemes or scheme == "pipe":
        raise Hopeless(f"no program is known for {scheme}://")
    return FileSource(gopen(path))


def read_range(
    path: str, start: int, size: int, timeout: float, etag: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """At most `size` bytes of a shard from `start` on, and its facts, for a path that `has_ranges`.

    Raises:
        OSError: they do not arrive; Hopeless: and never will; Changed: the contents do not match `etag`.
    """
    path = rewrite_url(path)
    if is_object(path):
        return read_object(path, start, size, timeout, etag)
    if is_web(path):
        return read_web(path, start, size, timeout, etag)
    raise Hopeless("parts of a command's output cannot be read")


def current_facts(path: str, timeout: float) -> dict[str, str]:
    """The facts about a shard's contents now; empty if its server does not state them.

    Raises:
        Gone: there is no such object in its store.
    """
    try:
        path = rewrite_url(path)
        if is_object(path):
            return read_object(path, 0, 1, timeout)[1]
        return web_facts(path, timeout) if is_web(path) else {}
    except Gone:
        raise
    except (OSError, ValueError):
        return {}
