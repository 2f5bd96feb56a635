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
    manifest = local_beside(path, MANIFEST, fetch)
    if manifest is None:
        return None
    try:
        modified = os.stat(manifest).st_mtime_ns
    except OSError:
        return None
    name = os.path.basename(path.partition("?")[0] if is_remote(path) else path)
    samples = _read_manifest(manifest, modified).get(name)
    return samples if isinstance(samples, int) and samples >= 0 else None


def count_samples(paths: Sequence[str]) -> int | None:
    """The number of samples of local shards by their manifests; None if a shard is not listed or not
    local."""
    counts = [None if is_remote(path) else expected_samples(path, FETCH) for path in paths]
    return None if None in counts else sum(count for count in counts if count is not None)


@lru_cache(maxsize=64)
def _read_manifest(manifest: str, modified: int) -> dict[str, Any]:
    try:
        with open(manifest, "rb") as file:
            shards = json.load(file)["shards"]
        return {name: entry.get("samples") for name, entry in shards.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # as if there were none


def lost_samples(shard: Shard, others: Sequence[str], fetch: FetchConfig) -> tuple[int, str] | None:
    """How many samples are missing from a shard that can be opened, and how that is known.

    Args:
        others: paths of the shards of its set; some of them are examined if there is no manifest.
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
    sizes = [size for path in _some(others, shard.path) if not is_remote(path) and (size := whole_size(path))]
    if sizes:
        whole = begun * median(sizes) / max(1, shard.whole_bytes)
        why = f"an estimate: {len(sizes)} whole shards have {median(sizes):.0f} bytes (median)"
        return max(1, round(whole) - len(shard)), why
    return begun, "a guess: no other shard is whole, so as many again as are left"


def _some(others: Sequence[str], own: str) -> list[str]:
    chosen = Random(0).sample(others, min(ASKED + 1, len(others)))
    return [path for path in chosen if path != own][:ASKED]
