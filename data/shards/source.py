"""Where the bytes of a remote shard come from: a web server or a command.

`http`, `https` and `hf` are read here, `pipe:COMMAND` and the schemes of `COMMANDS` by a program in a process
group of its own, so that it ends with all that it started. Others are left to webdataset's gopen.
"""

import http.client
import os
import signal
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from webdataset.gopen import gopen, gopen_schemes, rewrite_url  # pyright: ignore[reportAttributeAccessIssue]

COMMANDS = {
    "gs": ("gsutil", "cat"),
    "ais": ("ais", "get"),
    "sftp": ("curl", "-f", "-s", "-S", "-L"),
    "ftps": ("curl", "-f", "-s", "-S", "-L"),
    "scp": ("curl", "-f", "-s", "-S", "-L"),
}
AFTER = {"ais": ("-",)}
CUT_BY_READER = 141  # 128 + SIGPIPE: something inside the command stopped reading early, as `head` does
KEPT_HEADERS = ("ETag", "Last-Modified", "Content-Length")
NO_HEADERS: Mapping[str, str] = {}
RETRIED = (408, 425, 429)  # and all from 500 on


class Source(Protocol):
    """Something that gives bytes.

    Attributes:
        facts: of the contents, to tell whether they changed; empty where nothing is known.
    """

    facts: dict[str, str]

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any; none at the end.

        Raises:
            OSError: what came is not whole.
        """
        ...

    def kill(self) -> None:
        """End a `read` of another thread, now or at the source's time-out."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Hopeless(OSError):
    """Asking again will not help."""


class WebSource:
    """The body of an answer to a GET request."""

    def __init__(self, path: str, timeout: float) -> None:
        self._answer = ask(path, "GET", timeout)
        self.facts = facts_of(self._answer.headers)
        self._left = int(self.facts["Content-Length"]) if "Content-Length" in self.facts else None

    def read(self, size: int) -> bytes:
        """See Source."""
        try:
            data = self._answer.read1(size)
        except http.client.HTTPException as error:
            raise ConnectionError(f"the connection broke ({type(error).__name__})") from error
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left:
                raise ConnectionError(f"the connection broke, {self._left} bytes before the end")
        return data

    def kill(self) -> None:
        """See Source: the socket has a time-out."""

    def close(self) -> None:
        """See Source."""
        self._answer.close()


# Runs a command beside a watcher that kills their process group when this process is gone, however it ended:
# then the other end of the watcher's input closes.
WATCHED = 'exec 3<&0 </dev/null; { read -r _; kill -9 0; } <&3 >/dev/null 2>&1 & exec 3<&-; exec "$@"'


class CommandSource:
    """What a command writes; all that it started ends with it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.facts: dict[str, str] = {}
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
    """A local file, or what webdataset opens."""

    def __init__(self, file: Any) -> None:
        self.facts: dict[str, str] = {}
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
    """Whether it is no local file."""
    return path.startswith("pipe:") or "://" in path


def is_web(path: str) -> bool:
    """Whether a web server is asked for it."""
    return path.lower().startswith(("http:", "https:", "hf:"))


def has_ranges(path: str) -> bool:
    """Whether parts of it can be asked for."""
    return is_web(path)


def open_source(path: str, timeout: float) -> Source:
    """The source of a shard; `timeout` in seconds is that of a web server's answer."""
    if not is_remote(path):
        return FileSource(open(path, "rb"))
    path = rewrite_url(path)
    scheme = path.partition(":")[0].lower()
    if path.startswith("pipe:"):
        return CommandSource(["/bin/sh", "-c", path.removeprefix("pipe:")])
    if is_web(path):
        return WebSource(path, timeout)
    if scheme in COMMANDS:
        return CommandSource([*COMMANDS[scheme], path, *AFTER.get(scheme, ())])
    if scheme not in gopen_schemes or scheme == "pipe":
        raise Hopeless(f"no program is known for {scheme}://")
    return FileSource(gopen(path))


def current_facts(path: str, timeout: float) -> dict[str, str]:
    """What a web server says of a shard now; empty where it says nothing, or the source is another one."""
    try:
        path = rewrite_url(path)
        if not is_web(path):
            return {}
        with ask(path, "HEAD", timeout) as answer:
            return facts_of(answer.headers)
    except (OSError, ValueError, http.client.HTTPException):
        return {}


def read_range(path: str, start: int, size: int, timeout: float) -> tuple[bytes, dict[str, str]]:
    """Bytes of a shard on a web server from `start` on, and its facts; `Content-Length` is the whole shard's.

    Fewer bytes than `size` are the last ones. Nothing, and no facts, where the server does not answer, does
    not know the length (what it has may be cut), or does not give ranges and `start` is not 0.
    """
    try:
        path = rewrite_url(path)
        if not is_web(path):
            return b"", {}
        with ask(path, "GET", timeout, {"Range": f"bytes={start}-{start + size - 1}"}) as answer:
            ranged = answer.headers.get("Content-Range", "").rpartition("/")[2]
            whole = int(ranged or answer.headers.get("Content-Length", ""))
            data = answer.read(size) if ranged or start == 0 else b""
            if len(data) != max(0, min(size, whole - start)):
                return b"", {}
            return data, facts_of(answer.headers) | {"Content-Length": str(whole)}
    except (OSError, ValueError, http.client.HTTPException):
        return b"", {}


def facts_of(headers: Any) -> dict[str, str]:
    """Of an answer's headers those that tell one content from another."""
    if headers.get("Content-Encoding", "identity") != "identity":
        return {}  # the length is another one then
    return {name: str(headers[name]) for name in KEPT_HEADERS if headers.get(name)}


def ask(path: str, method: str, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> Any:
    """A server's answer; the password of an URL, or the user's token for `hf`, goes to that server alone.

    Raises:
        OSError: there is none, or it is an error.
    """
    url, authorization = _resolve(path) if path.startswith("hf:") else _without_password(path)
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "packvit", **headers})
    if authorization:
        # Not passed on where the server sends us elsewhere.
        request.add_unredirected_header("Authorization", authorization)
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        hopeless = error.code < 500 and error.code not in RETRIED
        raise (Hopeless if hopeless else OSError)(f"the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(f"no connection ({error.reason})") from None
    except http.client.HTTPException as error:
        raise OSError(f"no answer ({type(error).__name__})") from None


def _without_password(url: str) -> tuple[str, str | None]:
    parts = urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    encoded = b64encode(unquote(credentials).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {encoded}"


def _resolve(path: str) -> tuple[str, str | None]:
    from huggingface_hub import HfFileSystem, get_token, hf_hub_url

    place: Any = HfFileSystem().resolve_path(path)
    url = hf_hub_url(
        repo_id=place.repo_id,
        filename=place.path_in_repo,
        repo_type=place.repo_type,
        revision=place.revision,
    )
    token = get_token()
    return url, f"Bearer {token}" if token else None
