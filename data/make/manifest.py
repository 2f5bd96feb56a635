"""`manifest.json`: how many samples and bytes each shard of a folder was written with.

It tells a reader what a truncated shard has lost. A shard is listed before it gets its name, so every shard
of a folder is in the manifest.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from packvit.common.files import write_whole

MANIFEST = "manifest.json"
PAUSE = 20  # times as long as the last listing took, until the next one


class Listed(NamedTuple):
    """What a manifest says of a shard.

    path: of the shard.
    samples, bytes: how many it has.
    hidden: what it is called until it is listed; None where it has its name.
    """

    path: Path
    samples: int
    bytes: int
    hidden: Path | None = None


def read_manifest(folder: Path) -> dict[str, dict[str, int]]:
    """{"samples": number, "bytes": size} of each shard by its file name; empty without a manifest.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / MANIFEST
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["shards"]
        return {
            name: {key: int(entry[key]) for key in ("samples", "bytes")} for name, entry in listed.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it") from error


def list_shards(folder: Path, shards: Mapping[str, tuple[int, int]]) -> None:
    """Add shards to the manifest of a folder, and remove those that no longer exist.

    Args:
        shards: {file name: (samples, bytes)}.

    Raises:
        ValueError: the existing manifest is damaged.
    """
    listed = {name: entry for name, entry in read_manifest(folder).items() if (folder / name).exists()}
    listed |= {name: {"samples": samples, "bytes": size} for name, (samples, size) in shards.items()}
    write_whole(folder / MANIFEST, json.dumps({"shards": dict(sorted(listed.items()))}, indent=1) + "\n")


class Listing:
    """Lists shards in the manifests of their folders as they are finished; a context manager.

    Whoever lists many writes a large manifest many times: so this takes at most a twentieth of the time, and
    the last ones are listed at the end, also after a failure.
    """

    def __init__(self) -> None:
        self._new: list[Listed] = []
        self._next = float("-inf")

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def add(self, shard: Listed) -> None:
        """A finished shard, on the disk of this machine or one that all machines share.

        Raises:
            ValueError: a manifest is damaged.
        """
        self._new.append(shard)
        if time.monotonic() >= self._next:
            began = time.monotonic()
            self._flush()
            self._next = time.monotonic() + PAUSE * (time.monotonic() - began)

    def _flush(self) -> None:
        new, self._new = self._new, []
        for folder in {shard.path.parent for shard in new}:
            here = [shard for shard in new if shard.path.parent == folder]
            list_shards(folder, {shard.path.name: (shard.samples, shard.bytes) for shard in here})
            for shard in here:
                if shard.hidden is not None:
                    shard.hidden.rename(shard.path)
