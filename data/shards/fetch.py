"""Shards that are not local tar files: fetched once, whole, into a cache folder, and read there.

Packing decides about a sample long before it is decoded, and a resumed run returns to samples in the middle
of a shard. Both need random access, which a local copy offers and a remote stream does not. Gzipped tars,
remote or local, are unpacked into the cache. Beside the copy of a web server's shard lies what the server
said of its contents; each process asks once whether they are still the same. The manifest and the names of
classes beside such shards are fetched like them.
"""

import json
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from packvit.common.files import cache_path
from packvit.common.stores.again import try_again
from packvit.common.stores.partial import Partial
from packvit.common.stores.source import Gone, Hopeless
from packvit.data.shards.download import check_tar, download, unzip
from packvit.data.shards.index import drop_index
from packvit.data.shards.source import current_facts, has_ranges, is_remote, is_web
from packvit.packing import derive_seed

GZIP_SUFFIXES = (".tar.gz", ".tgz")
MANIFEST = "manifest.json"
BESIDE, BESIDE_BYTES = ".manifest", 10**8  # copies of what lies beside shards
ROOM_STEP = 2**24  # bytes that a file may grow before room is looked for again
ASK_TIMEOUT = 10.0  # seconds to wait for an answer whether a shard has changed


@dataclass(frozen=True)
class FetchConfig:
    """How shards that are not local tar files are fetched.

    Args:
        timeout: seconds with too few bytes (see `min_kb_per_s`) after which a source counts as stalled. A
            source that failed is not tried again for as long.
        min_kb_per_s: minimum rate in 1000 bytes a second, as the mean over `timeout` seconds.
        retries: attempts after the first one for shards at a URL; `pipe:` commands are run once.
        cache_gb: space for fetched shards, in 10**9 bytes; the least recently used are removed for others. It
            should hold the shards that are being read: `data.streams` times `data.shuffle_shards`. With 0,
            shards on web servers and in object stores are read in place, one request per sample.
    """

    timeout: float = 60.0
    cache_gb: float = 100.0
    min_kb_per_s: float = 10.0
    retries: int = 4

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise ValueError(f"fetch.timeout={self.timeout} must be positive")
        for name in ("cache_gb", "min_kb_per_s", "retries"):
            if getattr(self, name) < 0:
                raise ValueError(f"fetch.{name}={getattr(self, name)} must not be negative")


FETCH = FetchConfig()
_failed: dict[str, tuple[float, type[Exception], str]] = {}  # by path: when, and how
_asked: set[str] = (
    set()
)  # paths of which is known that the copy is that of the source, as it was in this process


def local_file(path: str, config: FetchConfig) -> str:
    """The path itself for a local tar; otherwise that of a local copy, fetched if it is not there yet.

    Raises:
        OSError: it cannot be fetched, or the source stalls.
        ValueError: it is not a whole gzip file, or not a tar.
    """
    if is_remote(path):
        return _local_copy(path, (path,), ".tar", config)
    if not path.endswith(GZIP_SUFFIXES):
        return path
    status = os.stat(path)
    return _local_copy(path, (os.path.abspath(path), status.st_size, status.st_mtime_ns), ".tar", config)


def local_beside(shard: str, name: str, config: FetchConfig) -> str | None:
    """Where the file of this name in a shard's folder is, or a copy if that is on a server; None without one.

    A file that cannot be fetched the first time is not requested again by this process.
    """
    if not is_remote(shard):
        path = os.path.join(os.path.dirname(shard), name)
        return path if os.path.isfile(path) else None
    if not has_ranges(shard):
        return None  # a command would complain of a file that is not there
    base, mark, query = shard.partition("?")
    path = f"{base.rpartition('/')[0]}/{name}{mark}{query}"
    try:
        return _local_copy(path, (path,), BESIDE, replace(config, retries=min(1, config.retries)))
    except (OSError, ValueError) as error:
        _failed[path] = (math.inf, OSError, str(error))
        return None


def _local_copy(path: str, parts: tuple, suffix: str, config: FetchConfig) -> str:
    """See `local_file`; `parts` tell the copy from others."""
    when, kind, reason = _failed.get(path, (float("-inf"), OSError, ""))
    if time.monotonic() < when + config.timeout:
        raise kind(reason)
    folder = cache_path("shards")
    target = folder / f"{derive_seed(*parts):032x}{suffix}"
    try:
        if not _is_current(path, target, config):
            folder.mkdir(parents=True, exist_ok=True)
            # Several workers may want it: the first fetches it, the others wait.
            with FileLock(target.with_suffix(".lock")):
                if not _is_current(path, target, config):
                    partial = Partial(target.with_suffix(".partial"))
                    try:
                        retries = config.retries if _is_url(path) else 0
                        try_again(lambda: _fetch(path, target, partial, config), retries)
                    finally:
                        partial.drop()
        _asked.add(path)
    except (OSError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        _failed[path] = (time.monotonic(), kind, getattr(error, "strerror", None) or str(error))
        raise
    return str(target)


def forget() -> None:
    """Empty the memory of this process; files on disk are kept."""
    _failed.clear()
    _asked.clear()


def _is_url(path: str) -> bool:
    return "://" in path and not path.startswith("pipe:")


def _is_current(path: str, target: Path, config: FetchConfig) -> bool:
    """Whether there is a copy of what the source has now; marks it as used."""
    try:
        # The time of access says what was not used for longest; that of modification belongs to the index.
        os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    if path in _asked or not _is_url(path):
        return True
    then = _read_facts(target)
    if then is None:
        return False  # who fetched it was killed on the way
    try:
        now = current_facts(path, min(ASK_TIMEOUT, config.timeout)) if then else {}
    except Gone:
        return False
    # A server that cannot be asked, or says nothing, leaves us with what we have.
    return all(then[name] == now[name] for name in then.keys() & now.keys())


def _read_facts(target: Path) -> dict[str, str] | None:
    with suppress(OSError, ValueError):
        return dict(json.loads(target.with_suffix(".json").read_bytes()))
    return None


def _fetch(path: str, target: Path, partial: Partial, config: FetchConfig) -> None:
    """Make a copy, whole or not at all. What came before a connection broke stays in `partial`."""
    shard = target.suffix == ".tar"
    limit = config.cache_gb * 1e9 if shard else BESIDE_BYTES
    asked = 0

    def grown(size: int) -> None:
        nonlocal asked
        if size > limit:
            raise Hopeless(f"it has more than fetch.cache_gb={config.cache_gb:g} GB")
        if size >= asked and shard:
            _make_room(target, limit)
            asked = size + ROOM_STEP

    facts = download(path, partial, config.timeout, config.min_kb_per_s * 1e3, grown)
    try:
        asked = 0
        if shard:
            unzip(partial.path, grown)
            check_tar(partial.path, to_its_end=is_web(path) and "Content-Length" not in facts)
            drop_index(target)
    except (OSError, ValueError):
        partial.drop()  # these bytes are no use
        raise
    about = target.with_suffix(".json")
    about.unlink(missing_ok=True)  # it must never stand beside a copy of other contents
    os.replace(partial.path, target)
    about.write_text(json.dumps(facts))
    if shard:
        _make_room(target, limit)


def _make_room(keep: Path, limit: float) -> None:
    """Remove the shards that were not read for longest until all files of the folder fit, or none is left."""
    found = []
    for file in keep.parent.iterdir():
        with suppress(FileNotFoundError):  # another process may make room, too
            status = file.stat()
            found.append((status.st_atime, status.st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= limit:
            return
        if file.suffix == ".tar" and file != keep:
            total -= size
            drop_index(file)
            file.unlink(missing_ok=True)
            file.with_suffix(".json").unlink(missing_ok=True)
