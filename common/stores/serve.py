"""A process that does all with objects for the process that started it; see `objects`, its client.

Object stores have a process of their own because obstore's threads do not survive a fork, and the workers of
a run are forks, and because a transfer that hangs can then be ended. It imports nothing of packvit, so that
it starts in a tenth of a second.

Requests come on standard input, one line of JSON each. An answer is a line of JSON. For `read`, the bytes
follow in pieces, each preceded by four bytes of length, then a length of 0 and another line. After a failure,
the line is {"error": sentence, "hopeless": whether a retry would not help}.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from queue import Queue
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import obstore  # pyright: ignore[reportMissingImports]
from obstore import exceptions  # pyright: ignore[reportMissingImports]
from obstore.store import from_url  # pyright: ignore[reportMissingImports]

ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"),
}
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; with boto3 AWS_PROFILE; for public data "
    "AWS_SKIP_SIGNATURE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS; for public data GOOGLE_SKIP_SIGNATURE",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY; for public data AZURE_SKIP_SIGNATURE",
}
# Where the libraries of the stores look for credentials when no variable names any.
METADATA = ("169.254.169.254", "169.254.170.2", "/latest/", "metadata.google", "oauth2")
CONNECT_TIMEOUT = 10.0  # seconds at most
REFUSED, RETRIED = ("401", "403"), (408, 425, 429)  # all from 500 on are retried, too
DAY = timedelta(days=1)
PART, MOST_PARTS = 5 * 2**20, 9000  # bytes of a part of an object that is written; stores take 10,000
MOST_COPIED = 5 * 10**9  # bytes; of more S3 makes no copy by itself, so they come and go


class Output:
    """The stream of answers; knows whether one has begun."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.began = False

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self.began = True
        self._out.write(data)

    def flush(self) -> None:
        """Send them."""
        self._out.flush()


def kind_of(scheme: str) -> str:
    """`s3`, `gs` or `az`."""
    scheme = scheme.lower()
    return {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme if scheme in CREDENTIALS else "az")


@lru_cache(maxsize=64)
def store_of(bucket: str, timeout: float, whole: bool, retries: int) -> Any:
    """The store of a bucket.

    Args:
        bucket: a URL without a path.
        timeout: seconds for a connection and for each read; with `whole`, for the whole request.
        retries: retries of a failed request, with growing pauses.
    """
    kind = kind_of(bucket.partition(":")[0])
    named = next((name for name in ENDPOINTS[kind] if os.environ.get(name)), "")
    endpoint = os.environ.get(named, "")
    if named and not is_address(endpoint):  # obstore itself would end this process
        raise ValueError(f"{named}={endpoint} must be a URL such as https://host:9000")
    seconds = timedelta(seconds=timeout)
    client: Any = {"read_timeout": seconds, "timeout": seconds if whole else DAY}
    client["connect_timeout"] = min(seconds, timedelta(seconds=CONNECT_TIMEOUT))
    if endpoint.lower().startswith("http://"):
        client["allow_http"] = True  # whoever names such a server means it
    retry: Any = {"max_retries": retries}
    return from_url(bucket, client_options=client, retry_config=retry, **profile(kind))


def is_address(text: str) -> bool:
    """Whether it is the URL of a server."""
    with suppress(ValueError):  # of brackets, or a port beyond all ports
        parts = urlsplit(text)
        host = re.fullmatch(r"[^\s/]+", parts.hostname or "")
        return parts.scheme in ("http", "https") and host is not None and parts.port != 0
    return False


def profile(kind: str) -> dict[str, Any]:
    """What a store has to be told where keys are in `~/.aws`, which obstore reads by boto3 alone."""
    given = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE")
    places = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
    files = [os.path.expanduser(os.environ.get(name) or file) for name, file in places.items()]
    named = bool(os.environ.get("AWS_PROFILE")) or any(map(os.path.isfile, files))
    if kind != "s3" or not named or any(os.environ.get(name) for name in given):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider  # pyright: ignore[reportMissingImports]

        return {"credential_provider": Boto3CredentialProvider()}
    except (ImportError, ValueError):  # no boto3, or no credentials
        return {}


def place_of(request: dict, whole: bool = False, retries: int = 0) -> tuple[Any, str]:
    """The store that a request is for, and the object's path in it."""
    scheme, _, rest = request["url"].partition("://")
    bucket, _, path = rest.partition("/")
    return store_of(f"{scheme}://{bucket}", request["timeout"], whole, retries), path


def read(request: dict, out: Output) -> None:
    """Bytes of an object from `start` on, all or `size`, and of a given ETag if it is named.

    With `file` they are written there from `start` on, and the pieces are only their lengths.
    """
    start, size = request["start"], request["size"]
    store, path = place_of(request, whole=size is not None)
    options: Any = {}
    if size is not None:
        options["range"] = (start, start + size)
    elif start:
        options["range"] = {"offset": start}
    if request["etag"]:
        options["if_match"] = request["etag"]
    found = obstore.get(store, path, options=options)
    meta = found.meta
    facts = {"Content-Length": str(meta["size"]), "Last-Modified": meta["last_modified"].isoformat()}
    if meta["e_tag"]:
        facts["ETag"] = meta["e_tag"]
    if request["etag"] and facts.get("ETag") != request["etag"]:  # the server knows no conditions
        raise exceptions.PreconditionError
    say(out, {"facts": facts})
    left = found.range[1] - found.range[0]
    with place_in_file(request) as file:
        # In pieces so small that a parent sees how fast it is.
        for piece in found.stream(min_chunk_size=request.get("piece", 1)):
            out.write(len(piece).to_bytes(4, "big"))
            if file is None:
                out.write(piece)
            else:
                file.write(piece)
                file.flush()
                out.flush()
            left -= len(piece)
    out.write(bytes(4))
    say(out, {"error": f"the connection broke, {left} bytes before the end"} if left else {})


@contextmanager
def place_in_file(request: dict) -> Iterator[BinaryIO | None]:
    """The file of a request, positioned and truncated at `start`; None if it names none."""
    if not request.get("file"):
        yield None
        return
    start = request["start"]
    with open(request["file"], "r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        yield file


def list_all(request: dict, out: Output) -> None:
    """The URLs of all objects whose paths begin with the folders of `url`, with size and ETag."""
    store, folder = place_of(request, retries=request["retries"])
    bucket = "/".join(request["url"].split("/")[:3])
    found = (one for part in obstore.list(store, folder.rstrip("/") or None, chunk_size=1000) for one in part)
    say(out, {"objects": {f"{bucket}/{one['path']}": f"{one['size']} {one['e_tag']}" for one in found}})


def write(request: dict, out: Output) -> None:
    """Write a file to an object, which appears whole or not at all."""
    store, path = place_of(request, retries=request["retries"])
    size = os.path.getsize(request["file"])
    with open(request["file"], "rb") as file:
        obstore.put(store, path, file, chunk_size=part_size(size))
    say(out, {})


def delete(request: dict, out: Output) -> None:
    """Remove objects of one bucket: `url`, and then `others`, in no order."""
    store, path = place_of(request, retries=request["retries"])
    others = [place_of(request | {"url": url})[1] for url in request["others"]]
    for paths in filter(None, ([path], others)):
        with suppress(FileNotFoundError):
            obstore.delete(store, paths)
    say(out, {})


def rename(request: dict, out: Output) -> None:
    """Give an object the name `to`, in the same bucket."""
    store, path = place_of(request, retries=request["retries"])
    _, to = place_of(request | {"url": request["to"]})
    if (size := obstore.head(store, path)["size"]) <= MOST_COPIED:
        obstore.rename(store, path, to)
    else:
        import asyncio  # takes as long as all others

        asyncio.run(pass_through(store, path, to, size))
        obstore.delete(store, path)
    say(out, {})


async def pass_through(store: Any, path: str, to: str, size: int) -> None:
    """Copy an object by way of this machine."""
    found = await obstore.get_async(store, path)
    await obstore.put_async(store, to, found.stream(min_chunk_size=PART), chunk_size=part_size(size))


def part_size(size: int) -> int:
    """Bytes of each part of an object that is written."""
    return max(PART, size // MOST_PARTS + 1)


def say(out: Output, line: dict) -> None:
    """Send a line."""
    out.write(json.dumps(line).encode() + b"\n")
    out.flush()


def explain(error: Exception, url: str) -> dict:
    """What went wrong, in a sentence without secrets, and whether the failure is permanent."""
    text = str(error).partition("\n\nDebug source")[0]
    scheme, _, rest = url.partition("://")
    kind, bucket = kind_of(scheme), rest.partition("/")[0].rpartition("@")[0] or rest.partition("/")[0]
    status = re.search(r"status code: (\d+) ?([\w ]*)", text)
    code = re.search(r"<Code>([\w ]+)</Code>", text)
    name = f" ({code[1]})" if code else ""
    if any(place in text for place in METADATA) or "account must be specified" in text.lower():
        return failure(f"nothing gives access to {scheme}://: set {CREDENTIALS[kind]}")
    if code and code[1] in ("NoSuchBucket", "ContainerNotFound"):
        return failure(f"there is no bucket {bucket!r}")
    if isinstance(error, FileNotFoundError) and (code or not status):
        return failure("there is no such object") | {"gone": True}
    if isinstance(error, exceptions.PreconditionError):
        return failure("it was changed while it was read") | {"changed": True}
    refused = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    if refused or (status and status[1] in REFUSED):
        return failure(f"the store refuses access{name}: check {CREDENTIALS[kind]}")
    if status and status[1] in ("301", "307"):
        return failure("the bucket is in another region: set AWS_REGION")
    if status:
        number = int(status[1])
        answer = f"the store answers {number} {status[2].strip()}{name}"
        return failure(answer, hopeless=number < 500 and number not in RETRIED)
    if "sending request" in text or "connect" in text.lower():
        return failure("no connection to the store", hopeless=False)
    if "decoding response body" in text or "request or response body" in text or "timed out" in text:
        return failure("the connection broke", hopeless=False)
    return failure(text.splitlines()[0] if text else type(error).__name__, isinstance(error, ValueError))


def failure(sentence: str, hopeless: bool = True) -> dict:
    """The line that says it."""
    return {"error": sentence, "hopeless": hopeless}


def main() -> None:
    """Answer requests, one after the other."""
    actions = {"read": read, "list": list_all, "write": write, "delete": delete, "rename": rename}
    lines: Queue[bytes] = Queue()
    Thread(target=receive, args=(lines,), daemon=True).start()
    while True:
        request = json.loads(lines.get())
        out = Output(sys.stdout.buffer)
        try:
            actions[request["do"]](request, out)
        except BrokenPipeError:
            return
        except Exception as error:
            if out.began:  # the answer is in its pieces
                out.write(bytes(4))
            say(out, explain(error, request["url"]))


def receive(lines: Queue[bytes]) -> None:
    """Receive requests from standard input; when it ends, nobody waits for an answer any more."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
