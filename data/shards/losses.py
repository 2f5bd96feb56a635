"""How many samples a damaged shard has lost, from its manifest or estimated from its bytes.

A folder of shards, here or on a web server, may hold `manifest.json`:
{"shards": {"shard-000000.tar": {"samples": 1000, ...}}}.
"""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from statistics import median
from typing import Any

from packvit.data.shards.download import whole_size
from packvit.data.shards.fetch import FETCH, MANIFEST, FetchConfig, local_beside
from packvit.data.shards.shard import Shard
from packvit.data.shards.source import is_remote

ASKED = 32  # other shards whose sizes are looked at


def expected_samples(path: str, fetch: FetchConfig) -> int | None:
    """The number of samples that the manifest beside a shard states for it; None if it does not."""
    return _stated(path, _listed_beside(path, fetch))


def count_samples(paths: Sequence[str]) -> int | None:
    """The number of samples of local shards by their manifests, each of which is looked for once; None if a
    shard is not listed or not local."""
    listed: dict[str, dict[str, Any]] = {}
    total = 0
    for path in paths:
        if is_remote(path):
            return None
        folder = os.path.dirname(path)
        if folder not in listed:
            listed[folder] = _listed_beside(path, FETCH)
        samples = _stated(path, listed[folder])
        if samples is None:
            return None
        total += samples
    return total


def remember_manifests(paths: Sequence[str]) -> None:
    """Read the manifests of local shards now, so that the processes that are forked from this one share
    them."""
    one_of_each = {os.path.dirname(path): path for path in paths if not is_remote(path)}
    for path in one_of_each.values():
        _listed_beside(path, FETCH)


def _listed_beside(path: str, fetch: FetchConfig) -> dict[str, Any]:
    """What the manifest beside a shard says of each shard by its name; empty without one."""
    manifest = local_beside(path, MANIFEST, fetch)
    if manifest is None:
        return {}
    try:
        modified = os.stat(manifest).st_mtime_ns
    except OSError:
        return {}
    return _read_manifest(manifest, modified)


def _stated(path: str, listed: dict[str, Any]) -> int | None:
    samples = listed.get(os.path.basename(path.partition("?")[0] if is_remote(path) else path))
    return samples if isinstance(samples, int) and samples >= 0 else None


@lru_cache(maxsize=64)
def _read_manifest(manifest: str, modified: int) -> dict[str, Any]:
    try:
        with open(manifest, "rb") as file:
            shards = json.load(file, object_hook=_only_samples)["shards"]
        return dict(shards.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # as if there were none


def _only_samples(entry: dict[str, Any]) -> Any:
    """The number of a shard's samples alone, as soon as it is read: a manifest may list very many shards."""
    samples = entry.get("samples")
    return samples if isinstance(samples, int) and "shards" not in entry else entry


def lost_samples(
    shard: Shard, paths: Sequence[str], numbers: Sequence[int], fetch: FetchConfig
) -> tuple[int, str] | None:
    """How many samples are missing from a shard that can be opened, and how that is known.

    Args:
        paths: paths of shards.
        numbers: which of them are its set; some of these are examined if there is no manifest.
        fetch: how a manifest is fetched.

    Returns:
        None if the shard is whole, as far as can be told.
    """
    expected = expected_samples(shard.path, fetch)
    if expected is not None:
        lost = expected - len(shard)
        return (lost, f"its manifest names {expected} samples") if lost > 0 else None
    if shard.whole_bytes is None:
        return None
    begun = len(shard) + 1  # the sample in which it breaks off is lost, too
    others = _some(paths, numbers, shard.path)
    sizes = [size for path in others if not is_remote(path) and (size := whole_size(path))]
    if sizes:
        whole = begun * median(sizes) / max(1, shard.whole_bytes)
        why = f"an estimate: {len(sizes)} whole shards have {median(sizes):.0f} bytes (median)"
        return max(1, round(whole) - len(shard)), why
    return begun, "a guess: no other shard is whole, so as many again as are left"


def _some(paths: Sequence[str], numbers: Sequence[int], own: str) -> list[str]:
    chosen = Random(0).sample(numbers, min(ASKED + 1, len(numbers)))
    return [paths[number] for number in chosen if paths[number] != own][:ASKED]
