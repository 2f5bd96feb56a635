"""Objects of S3, Google Cloud Storage and Azure, by obstore in a process of its own, `serve`.

Credentials are those of each store's usual variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
"""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from packvit.common.optional import need
from packvit.common.stores.source import Changed, Gone, Hopeless

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss")
RETRIES = 5  # of listing and writing, which obstore does again by itself
ANSWER_TIMEOUT = 60.0  # seconds, of listing and writing
PIPE_BYTES = 2**20  # more than Linux's 64 kB, at which two processes wait for each other most of the time
PIECE = 2**18  # bytes that reach a file at once
END = 5.0  # seconds until a process that was killed is gone, unless the disk hangs
SERVE = Path(__file__).with_name("serve.py")


def is_object(path: str) -> bool:
    """Whether it names an object in a store, or several."""
    scheme, mark, _ = path.partition("://")
    return bool(mark) and scheme.lower() in SCHEMES


def need_stores(path: str) -> None:
    """Raise an ImportError that says what to install if objects such as `path` cannot be read."""
    need("obstore", "storage", f"{path.partition('://')[0]}:// needs obstore")


class Server:
    """The process that reads and writes; serves one request at a time."""

    def __init__(self) -> None:
        # Nothing beside the script is imported by accident.
        command = [sys.executable, "-P", str(SERVE)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pipesize=PIPE_BYTES if sys.platform == "linux" else -1,
        )

    def send(self, request: dict) -> dict:
        """Send a request; returns the first line of the answer.

        Raises:
            OSError: the request failed.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ConnectionError("the process that reads from stores has ended") from error
        return self.line()

    def line(self) -> dict:
        """The next line of an answer; raises like `send`."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text.endswith(b"\n"):
            raise ConnectionError("the process that reads from stores has ended")
        answer = json.loads(text)
        if "error" in answer:
            kinds = {"changed": Changed, "gone": Gone, "hopeless": Hopeless}
            raise next((kind for name, kind in kinds.items() if answer.get(name)), OSError)(answer["error"])
        return answer

    def bytes(self, size: int) -> bytes:
        """So many bytes of an answer; raises like `send`."""
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise ConnectionError("the process that reads from stores has ended")
        return data

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END)

    def close(self) -> None:
        """End the process and release everything."""
        self.end()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


_idle: dict[int, list[Server]] = {}  # servers that wait for a request, by the process that started them


def _take() -> Server:
    waiting = _idle.setdefault(os.getpid(), [])
    try:
        return waiting.pop()
    except IndexError:
        return Server()


def _give_back(server: Server) -> None:
    _idle.setdefault(os.getpid(), []).append(server)


@atexit.register
def close_idle() -> None:
    """End the idle processes; they also end when this process ends."""
    for server in _idle.pop(os.getpid(), []):
        server.close()


def _ask(request: dict) -> tuple[Server, dict]:
    """The server that answers a request, and the first line of its answer; raises like `Server.send`."""
    server = _take()
    try:
        return server, server.send(request)
    except OSError as error:
        if isinstance(error, ConnectionError):
            server.close()
        else:  # that was its answer
            _give_back(server)
        raise


def _read_request(path: str, start: int, size: int | None, etag: str | None, timeout: float) -> dict:
    return {"do": "read", "url": path, "start": start, "size": size, "etag": etag, "timeout": timeout}


class ObjectCopy:
    """A copy of an object's bytes to a file, by another process, so that they do not pass through this one.

    Args:
        path: the object's URL.
        file: file to which the bytes from `start` on are written at the same place; it ends with them.
        timeout: seconds for a connection and for each read.
        start: the first byte.
        etag: ETag of the contents that are needed; None accepts any.
        piece: minimum bytes of each piece but the last; every piece costs both processes time.
    """

    def __init__(
        self, path: str, file: Path, timeout: float, start: int, etag: str | None, piece: int = PIECE
    ) -> None:
        self._request = _read_request(path, start, None, etag, timeout) | {"file": str(file), "piece": piece}
        self._server = _take()
        self._done = False

    def begin(self) -> dict[str, str]:
        """Request the object; returns its facts (see Source).

        Raises:
            OSError: it cannot be read; Changed: it has another ETag.
        """
        return self._server.send(self._request)["facts"]

    def lengths(self) -> Iterator[int]:
        """The bytes of each piece, when it has reached the file.

        Raises:
            OSError: what came is not whole.
        """
        while length := int.from_bytes(self._server.bytes(4), "big"):
            yield length
        self._server.line()
        self._done = True

    def kill(self) -> None:
        """End it; nothing more is written to the file."""
        self._server.end()

    def close(self) -> None:
        """Let go of everything."""
        if self._done:
            _give_back(self._server)
        else:
            self._server.close()


def read_object(
    path: str, start: int, size: int, timeout: float, etag: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """At most `size` bytes of an object from `start` on, and its facts.

    Arguments and errors are those of ObjectCopy.

    Args:
        timeout: seconds for the whole request.
    """
    server, answer = _ask(_read_request(path, start, size, etag, timeout))
    try:
        pieces = []
        while length := int.from_bytes(server.bytes(4), "big"):
            pieces.append(server.bytes(length))
        server.line()
    except BaseException:
        server.close()
        raise
    _give_back(server)
    return b"".join(pieces), answer["facts"]


def list_objects(folder: str) -> list[str]:
    """The URLs of all objects below a folder, such as `s3://bucket/folder`, in any order.

    Raises:
        OSError: the store does not list them.
    """
    return list(describe_objects(folder))


def describe_objects(folder: str) -> dict[str, str]:
    """What tells the contents of objects below a folder from others, by URL; raises as `list_objects`."""
    return _do("list", folder)["objects"]


def write_object(file: Path, path: str) -> None:
    """Write a local file to an object; it appears whole, replacing an existing one, or not at all.

    Raises:
        OSError: the store does not accept it.
    """
    _do("write", path, file=str(file))


def delete_objects(paths: Sequence[str]) -> None:
    """Remove objects of one bucket, the first of them before all others.

    Raises:
        OSError: the store does not do it.
    """
    if paths:
        _do("delete", paths[0], others=list(paths[1:]))


def rename_object(path: str, to: str) -> None:
    """Give an object another name in its bucket.

    Raises:
        OSError: the store does not do it.
    """
    _do("rename", path, to=to)


def _do(what: str, path: str, **more: object) -> dict:
    """The answer to a request that is one line."""
    request = {"do": what, "url": path, "timeout": ANSWER_TIMEOUT, "retries": RETRIES, **more}
    server, answer = _ask(request)
    _give_back(server)
    return answer
