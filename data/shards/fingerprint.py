"""A fingerprint of the shards of a run, so that a run is not resumed on other data.

It consists of names, and of some bytes of some shards: of local files at three places, of shards on servers
also their beginnings, and what the server says about them (length, ETag, date). Every rank makes it when a
run begins, so it costs the same for eight shards and for a million.
"""

import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random

from packvit.common.stores.objects import is_object
from packvit.data.shards.download import GZIP_MAGIC
from packvit.data.shards.redact import redact
from packvit.data.shards.source import has_ranges, is_remote, read_range
from packvit.packing import derive_seed

SAMPLED, ASKED = 32, 8  # shards, here and on servers, whose contents are looked at
BEGINNING, PIECE = 4096, 1024  # bytes of the latter: at the start, and at each of `QUARTERS`
QUARTERS = (1, 2, 3)
TAGS = ("ETag", "Last-Modified")  # may be others for the same contents, as where these were copied


def fingerprint(paths: Sequence[str], timeout: float) -> dict:
    """The fingerprint that `same_shards` compares; JSON-serialisable, and without secrets.

    Args:
        paths: paths of all shards, in their order.
        timeout: seconds that a server has to answer; without an answer, nothing is compared.
    """
    names = [os.path.basename(path) for path in paths]
    named = derive_seed(*names)
    local = [path for path in paths if not is_remote(path)]
    away = [path for path in paths if has_ranges(path)]
    asked = Random(named).sample(away, min(ASKED, len(away)))
    remote = []
    if asked:
        # Each thread has a process of its own for objects.
        with ThreadPoolExecutor(1 if is_object(asked[0]) else ASKED) as pool:
            remote = list(pool.map(lambda path: _look_at(path, timeout), asked))
    return {
        "number": len(names),
        "first": names[0],
        "names": f"{named:032x}",
        "sampled": [_contents(path) for path in Random(named).sample(local, min(SAMPLED, len(local)))],
        "remote": remote,
    }


def digest(paths: Sequence[str]) -> str:
    """A hash of the names of all shards, and of the sizes of the local ones.

    Raises:
        OSError: a local shard is gone.
    """
    names = [os.path.basename(path) for path in paths]
    sizes = [-1 if is_remote(path) else os.path.getsize(path) for path in paths]
    return f"{derive_seed(*names, *sizes):032x}"


def same_shards(old: dict, new: dict) -> bool:
    """Whether two fingerprints belong to the same shards.

    A few of them may have been damaged in between, such as truncated, and some may not answer.
    """
    if any(old[name] != new[name] for name in ("number", "first")):
        return False
    pairs = [pair for pair in zip(old["sampled"], new["sampled"], strict=False) if all(pair)]
    same = [a == b for a, b in pairs]
    for before, now in zip(old.get("remote", ()), new["remote"], strict=False):
        answer = _same_contents(before, now)
        same += [] if answer is None else [answer]
    return old.get("names", new["names"]) == new["names"] and 2 * same.count(False) <= len(same)


def changed_tags(old: dict, new: dict) -> list[str]:
    """Shards on servers that have changed since, according to their ETags and dates."""
    return [
        now["path"]
        for before, now in zip(old.get("remote", ()), new["remote"], strict=False)
        if before["path"] == now["path"] and any(_differ(before["facts"], now["facts"], tag) for tag in TAGS)
    ]


def _same_contents(before: dict, now: dict) -> bool | None:
    """Whether the same lies on a server, there or elsewhere; None if nothing is known of one of both."""
    if _differ(before["facts"], now["facts"], "Content-Length"):
        return False
    pairs = [pair for pair in zip(before["pieces"], now["pieces"], strict=True) if all(pair)]
    return all(a == b for a, b in pairs) if pairs else None


def _differ(before: dict, now: dict, name: str) -> bool:
    return name in before and name in now and before[name] != now[name]


def _look_at(path: str, timeout: float) -> dict:
    """What a server has: facts, and digests of pieces; empty if that cannot be known now."""
    seen = {"path": redact(path), "facts": {}, "pieces": [""] * (1 + len(QUARTERS))}
    data, facts = _part(path, 0, BEGINNING, timeout)
    try:
        if not data.startswith(GZIP_MAGIC):
            tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "replace")
    except tarfile.TarError:
        return seen  # a page that asks to log in is no other shard
    size = int(facts["Content-Length"])
    pieces = [data]
    for quarter in QUARTERS:
        piece, later = _part(path, size * quarter // 4, PIECE, timeout)
        pieces.append(piece if later == facts else b"")
    return seen | {"facts": facts, "pieces": [f"{derive_seed(p.hex()):032x}" if p else "" for p in pieces]}


def _part(path: str, start: int, size: int, timeout: float) -> tuple[bytes, dict[str, str]]:
    """Some bytes, and facts; none where there is no answer."""
    try:
        return read_range(path, start, size, timeout)
    except (OSError, ValueError):
        return b"", {}


def _contents(path: str) -> str:
    """A digest of some bytes of a file; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            parts = [os.pread(file.fileno(), PIECE, size * quarter // 4) for quarter in QUARTERS]
            name = os.pread(file.fileno(), 100, 0)  # of a tar's first member
    except OSError:
        return ""
    return f"{derive_seed(name.hex(), *(part.hex() for part in parts)):032x}"
