"""Names of classes beside shards: classes.json, a list with a name for each class."""

import json
from collections.abc import Iterable
from pathlib import Path

from packvit.data.shards.source import is_remote

CLASSES = "classes.json"


def read_class_names(folder: Path) -> list[str] | None:
    """The list in a folder's classes.json, as `packvit shards write` writes it; None if it cannot be read."""
    try:
        names = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def shard_folders(patterns: Iterable[str]) -> list[Path]:
    """The local folders in which the shards of patterns lie, in the order of the patterns."""
    paths = [Path(pattern) for pattern in patterns if not is_remote(pattern)]
    return [path if path.is_dir() else path.parent for path in paths]
