"""A small S3 server in this process: objects in memory, a log of what was written, and faults as it is told.

It speaks what packvit needs of S3, checks no signature, and has every bucket. Tests use it where an object
store has to be written to.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from itertools import count
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from faults.local import LocalServer
from faults.server import ranged

# What can be wrong: "drop" (no answer, nothing done), "late" (done, but no answer), or a status.
Fault = str | int
PAGE = 100  # objects in an answer to a list


class Write(NamedTuple):
    """A change: `data` is None where the object was removed."""

    key: str
    data: bytes | None


class Bucket(LocalServer):
    """An S3 server at `address` while it is entered.

    Attributes:
        objects: contents by bucket/key.
        writes: all changes, in their order.
        choose: asked for the fault of a request by its method and bucket/key.
        signed: the Authorization header of every request.
    """

    methods = ("GET", "HEAD", "PUT", "POST", "DELETE")

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})
        self.writes: list[Write] = []
        self.choose: Callable[[str, str], Fault | None] = lambda method, key: None
        self.signed: list[str] = []
        self._parts: dict[str, dict[int, bytes]] = {}
        self._numbers = count()
        self._lock = threading.Lock()
        super().__init__()
        self.address = f"http://{self.place}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """See LocalServer."""
        with suppress(ConnectionError):
            self._answer(request)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        key, query = unquote(url.path).strip("/"), parse_qs(url.query, keep_blank_values=True)
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        self.signed.append(request.headers.get("Authorization", ""))
        fault = self.choose(request.command, key)
        if isinstance(fault, int):
            request.send_error(fault)
        elif fault != "drop":
            with self._lock:
                status, headers, data = self._do(request, key, query, body)
            if fault != "late":
                request.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    request.send_header(name, value)
                request.end_headers()
                if request.command != "HEAD":
                    request.wfile.write(data)

    def _do(
        self, request: BaseHTTPRequestHandler, key: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        method, upload = request.command, query.get("uploadId", [""])[0]
        if method == "GET" and "list-type" in query:
            return 200, {}, self._list(key, query).encode()
        if method in ("GET", "HEAD"):
            return self._read(request, key)
        if method == "PUT" and upload:
            self._parts[upload][int(query["partNumber"][0])] = body
            return 200, {"ETag": tag_of(body)}, b""
        if method == "PUT":
            source = request.headers.get("x-amz-copy-source")
            data = self.objects[unquote(source).strip("/")] if source else body
            self._write(key, data)
            text = f"<CopyObjectResult><ETag>{tag_of(data)}</ETag></CopyObjectResult>" if source else ""
            return 200, {"ETag": tag_of(data)}, text.encode()
        if method == "POST" and "delete" in query:
            names = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for name in names:
                self._write(f"{key}/{unescape(name)}", None)
            text = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
            return 200, {}, f"<DeleteResult>{text}</DeleteResult>".encode()
        if method == "POST" and "uploads" in query:
            upload = f"upload-{next(self._numbers)}"
            self._parts[upload] = {}
            text = "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>"
            return 200, {}, f"{text}<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode()
        if method == "POST":
            parts = self._parts.pop(upload)
            data = b"".join(parts[number] for number in sorted(parts))
            self._write(key, data)
            text = f"<CompleteMultipartUploadResult><ETag>{tag_of(data)}</ETag>"
            return 200, {}, f"{text}</CompleteMultipartUploadResult>".encode()
        if not upload:
            self._write(key, None)
        return 204, {}, b""

    def _write(self, key: str, data: bytes | None) -> None:
        self.writes.append(Write(key, data))
        if data is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = data

    def _read(self, request: BaseHTTPRequestHandler, key: str) -> tuple[int, dict[str, str], bytes]:
        if key not in self.objects:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        data = self.objects[key]
        headers = {"ETag": tag_of(data), "Last-Modified": "Sun, 01 Jan 2023 00:00:00 GMT"}
        if request.headers.get("If-Match", tag_of(data)) != tag_of(data):
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        part = ranged(request.headers, len(data), "")
        if part is None:
            return 200, headers, data
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(data)}"
        return 206, headers, data[part.start : part.stop]

    def _list(self, bucket: str, query: dict[str, list[str]]) -> str:
        prefix = f"{bucket}/{query.get('prefix', [''])[0]}"
        after = query.get("continuation-token", [""])[0]
        names = sorted(name for name in self.objects if name.startswith(prefix) and name > after)
        entries = [
            f"<Contents><Key>{escape(name.partition('/')[2])}</Key><Size>{len(self.objects[name])}</Size>"
            f"<LastModified>2023-01-01T00:00:00.000Z</LastModified><ETag>{tag_of(self.objects[name])}</ETag>"
            "</Contents>"
            for name in names[:PAGE]
        ]
        more = len(names) > PAGE
        token = f"<NextContinuationToken>{names[PAGE - 1]}</NextContinuationToken>" if more else ""
        text = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(entries)}"
        return f"<ListBucketResult>{text}</ListBucketResult>"


def tag_of(data: bytes) -> str:
    """The ETag of contents."""
    return f'"{hashlib.md5(data).hexdigest()}"'
