"""`manifest.json`: how many samples and bytes each shard of a folder was written with.

It tells a reader what a truncated shard has lost. A shard is listed before it gets its name, so every shard
of a folder is in the manifest.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from packvit.common.files import write_whole

MANIFEST = "manifest.json"


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
