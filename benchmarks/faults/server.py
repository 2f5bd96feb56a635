"""A web server that serves a folder, and does wrong what it is told to.

Tests and benchmarks/chaos.py use it.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from faults.local import LocalServer

PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>" * 20
DRIPS, DRIP_PAUSE = 200, 0.05  # bytes, and seconds after each
STALL = 60.0  # seconds, unless the client hangs up before

# What can be wrong with an answer: "cut", "unsized cut", "page", "drop", "drip", "stall", or a status.
Fault = str | int


@dataclass(frozen=True)
class Answered:
    """A GET request that was answered.

    Args:
        path: that was asked for.
        fault: how the answer was wrong; None if it was right.
        at: when it ended, of time.monotonic.
    """

    path: str
    fault: Fault | None
    at: float


class FaultyServer(LocalServer):
    """Serves the files of `folder` at `address` while it is entered.

    Attributes:
        answers: faults of the next GETs, in order; None is no fault, and there is none after the last.
        choose: asked for the fault of a GET by its path, where `answers` is empty.
        body: instead of every file.
        tag: the ETag of its answers.
        closed: whether it hangs up on everybody.
        seen: (method, path, Authorization) of every request.
        ranges: the Range header of every request.
        answered: every GET, in the order in which they ended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: list[Fault | None] = []
        self.choose: Callable[[str], Fault | None] = lambda path: None
        self.body: bytes | None = None
        self.tag = "one"
        self.closed = False
        self.seen: list[tuple[str, str, str | None]] = []
        self.ranges: list[str | None] = []
        self.answered: list[Answered] = []
        super().__init__()
        self.address = self.place

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """See LocalServer."""
        if request.command == "HEAD":
            self._answer(request, None)
            return
        fault = self.answers.pop(0) if self.answers else self.choose(request.path)
        with suppress(ConnectionError):  # who gives a drip up hangs up
            self._answer(request, fault)
        self.answered.append(Answered(request.path, fault, time.monotonic()))

    def _answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        self.ranges.append(request.headers.get("Range"))
        self.seen.append((request.command, request.path, request.headers.get("Authorization")))
        if fault == "drop" or self.closed:
            return
        name = Path(request.path.partition("?")[0]).name
        body = self.body
        if body is None:
            file = self.folder / name
            fault = 404 if not file.is_file() and not isinstance(fault, int) else fault
            body = b"" if fault == 404 else file.read_bytes()
        if isinstance(fault, int):
            request.send_error(fault)
            return
        body = PAGE if fault == "page" else body
        part = ranged(request.headers, len(body), self.tag) if fault != "page" else None
        request.send_response(200 if part is None else 206)
        request.send_header("ETag", self.tag)
        if part is not None:
            request.send_header("Content-Range", f"bytes {part.start}-{part.stop - 1}/{len(body)}")
            body = body[part.start : part.stop]
        if fault != "unsized cut":
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        if fault == "drip":
            for byte in body[:DRIPS]:
                request.wfile.write(bytes([byte]))
                time.sleep(DRIP_PAUSE)
        elif fault == "stall":
            request.connection.settimeout(STALL)
            with suppress(OSError):
                request.connection.recv(1)  # nothing comes before the client hangs up
        else:
            request.wfile.write(body[: len(body) // 2 + 100] if fault in ("cut", "unsized cut") else body)


def ranged(headers: Message, size: int, tag: str) -> range | None:
    """The bytes that a request asks for; None for all of them."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
    if asked is None or int(asked[1]) >= size or headers.get("If-Range", tag) != tag:
        return None
    return range(int(asked[1]), min(size, int(asked[2] or size) + 1))
