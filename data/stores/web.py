"""Shards on web servers and on the Hugging Face hub."""

import http.client
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from packvit.common.optional import need
from packvit.common.stores.source import Changed, Hopeless, strong

KEPT_HEADERS = ("ETag", "Last-Modified", "Content-Length")
NO_HEADERS: Mapping[str, str] = {}
PARTIAL = 206  # the status of an answer with a part
RETRIED = (408, 425, 429)  # and all from 500 on


class WebSource:
    """The body of an answer to a GET request; see `Source`.

    Args:
        path: URL.
        timeout: seconds for an answer, and for each read.
        start: the first byte that is needed. The body begins at 0 if the server does not support ranges, or
            if its contents do not match `etag`.
        etag: ETag of the contents that are needed, if `start` is not 0.

    Raises:
        OSError: there is no answer, or it is an error.
    """

    def __init__(self, path: str, timeout: float, start: int = 0, etag: str | None = None) -> None:
        headers = {"Range": f"bytes={start}-", "If-Range": etag} if start and etag else NO_HEADERS
        self._answer = ask(path, "GET", timeout, headers)
        self.facts = facts_of(self._answer.headers)
        self.start = start if self._answer.status == PARTIAL else 0
        self._left = (
            int(self.facts["Content-Length"]) - self.start if "Content-Length" in self.facts else None
        )

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


def read_web(
    path: str, start: int, size: int, timeout: float, etag: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """At most `size` bytes of a file on a server from `start` on, and its facts.

    Raises:
        OSError: there is no complete answer; Hopeless: the server does not support ranges and `start` is not
            0; Changed: the contents do not match `etag`.
    """
    headers = {"Range": f"bytes={start}-{start + size - 1}"} | ({"If-Range": etag} if etag else {})
    with ask(path, "GET", timeout, headers) as answer:
        facts = facts_of(answer.headers)
        if etag and strong(facts) != etag:
            raise Changed("it was changed while it was read")
        if answer.status != PARTIAL and start:
            raise Hopeless("its server does not support ranges")
        try:
            data = answer.read(size)
            left = int(facts["Content-Length"]) - start if "Content-Length" in facts else None
        except (http.client.HTTPException, ValueError) as error:
            raise ConnectionError(f"the connection broke ({type(error).__name__})") from error
    if left is None:
        raise Hopeless("its server does not say how long it is")
    if len(data) != max(0, min(size, left)):
        raise ConnectionError("the connection broke")
    return data, facts


def web_facts(path: str, timeout: float) -> dict[str, str]:
    """What a server says about its contents now; raises like `ask`."""
    with ask(path, "HEAD", timeout) as answer:
        return facts_of(answer.headers)


def facts_of(headers: Any) -> dict[str, str]:
    """The headers of an answer that identify its content; the length is that of the whole content."""
    if headers.get("Content-Encoding", "identity") != "identity":
        return {}  # the length is another one then
    facts = {name: str(headers[name]) for name in KEPT_HEADERS if headers.get(name)}
    if "Content-Range" in headers:
        whole = headers["Content-Range"].rpartition("/")[2]
        facts = facts | {"Content-Length": whole} if whole.isdecimal() else {}
    return facts


def ask(path: str, method: str, timeout: float, headers: Mapping[str, str] = NO_HEADERS) -> Any:
    """A server's answer; the password of a URL, or the user's token for `hf`, is sent only to that server.

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
    hub: Any = need("huggingface_hub", "hub", "hf:// needs huggingface_hub")
    place = hub.HfFileSystem().resolve_path(path)
    url = hub.hf_hub_url(
        repo_id=place.repo_id,
        filename=place.path_in_repo,
        repo_type=place.repo_type,
        revision=place.revision,
    )
    token = hub.get_token()
    return url, f"Bearer {token}" if token else None
