"""An S3 server on this machine, moto's, in a process of its own; and one before it that does wrong.

Tests and benchmarks/storage.py use it.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.error import HTTPError

from faults.local import LocalServer

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "S3cretS3cret", "AWS_REGION": "us-east-1"}
START = 60.0  # seconds; the first request may take long, too
PASSED_ON = ("Range", "If-Match", "Content-Type", "x-amz-content-sha256", "x-amz-date", "Authorization")


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def moto_server() -> Iterator[str]:
    """The URL of an S3 server without buckets, while it runs."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # moto asks AWS for nothing, but looks for credentials.
    server = subprocess.Popen(
        command, env=os.environ | KEYS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + START
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > end or server.poll() is not None:
                raise OSError("moto's server did not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def send(url: str, method: str, body: bytes | None = None) -> bytes:
    """The body of an answer; moto asks for no signature."""
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, body, headers, method=method)
    with urllib.request.urlopen(request, timeout=START) as answer:
        return answer.read()


class FaultyFront(LocalServer):
    """Passes requests on to an S3 server, while it is entered, and does wrong what it is told to.

    Attributes:
        answers: faults of the next GETs of objects, in order: "drop" (no answer), "cut", "stall", a status,
            or None.
        ranges: (path, Range header) of each GET of an object.
    """

    methods = ("GET", "HEAD", "PUT", "POST")

    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.answers: list[str | int | None] = []
        self.ranges: list[tuple[str, str | None]] = []
        super().__init__()
        self.address = f"http://{self.place}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """See LocalServer."""
        with suppress(ConnectionError):
            self._pass_on(request)

    def _pass_on(self, request: BaseHTTPRequestHandler) -> None:
        fault = None
        if request.command == "GET" and "list-type" not in request.path:
            self.ranges.append((request.path, request.headers.get("Range")))
            fault = self.answers.pop(0) if self.answers else None
        if fault == "drop":
            return
        if fault == "stall":
            request.connection.settimeout(60)
            request.connection.recv(1)  # nothing comes before the client hangs up
            return
        if isinstance(fault, int):
            request.send_error(fault)
            return
        length = int(request.headers.get("Content-Length", 0))
        # Without a type urllib would name that of a form, in which moto would look for the contents.
        headers = {"Content-Type": "application/octet-stream"}
        headers |= {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        body = request.rfile.read(length) if length else None
        asked = urllib.request.Request(self.behind + request.path, body, headers, method=request.command)
        answer: Any
        try:
            answer = urllib.request.urlopen(asked, timeout=20)
        except HTTPError as error:
            answer = error
        with answer:
            data = answer.read()
            request.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                    request.send_header(name, value)
            request.end_headers()
            request.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
