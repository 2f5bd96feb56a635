"""Shards that are written but not published: their hidden names, and notes of what they were made of.

A shard becomes `.shard-000000.tar.whole` when it is complete, with a note beside it. A shard that a killed
command left is kept only if its note names the same plan and the file has the size and the hash of the note.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packvit.common.files import hash_file, require_shared, write_whole
from packvit.data.make.manifest import list_shards
from packvit.data.make.write import check_no_shards, write_classes

HIDDEN = re.compile(r"\.+(shard-\d+\.tar)\.(json|whole|([0-9a-f]+\.)?partial|json\.partial)")


@dataclass(frozen=True)
class Note:
    """A note about a shard that has been written.

    Args:
        plan: hash of everything that the whole set is made of.
        images: number of images in the shard.
        broken: a sentence for each image that was left out.
        bytes, hash: size and SHA-256 of the file.
    """

    plan: str
    images: int
    broken: list[str]
    bytes: int
    hash: str

    def write(self, shard: Path) -> None:
        """Write the note beside the shard."""
        write_whole(hidden_name(shard, ".json"), json.dumps(asdict(self)))

    def require_shared(self, shard: Path) -> None:
        """Raise a ValueError if another machine has written the shard where this one does not see it."""
        require_shared(hidden_name(shard, ".json"))

    def fits(self, shard: Path) -> bool:
        """Whether the shard, published or not, is unchanged; a shard without images may be missing."""
        if not self.images:
            return True
        path = shard if shard.exists() else hidden_name(shard, ".whole")
        return path.exists() and path.stat().st_size == self.bytes and hash_file(path) == self.hash


def read_note(shard: Path) -> Note | None:
    """The note of a shard that is not published yet; None if there is none or it cannot be read."""
    try:
        return Note(**json.loads(hidden_name(shard, ".json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def clear(shards: Sequence[Path], plan: str) -> None:
    """Remove hidden files of other plans, which may hold other images, from the folders of `shards`.

    Args:
        shards: all shards that the plan makes.

    Raises:
        ValueError: a folder has published shards that do not belong to this plan.
    """
    noted = {shard for shard in shards if (note := read_note(shard)) is not None and note.plan == plan}
    for folder in {shard.parent for shard in shards}:
        # Of its own shards a killed command has published some, and perhaps removed their notes.
        if not noted or not set(folder.glob("shard-*.tar")) <= set(shards):
            check_no_shards(folder)
        for path in folder.glob(".*shard-*.tar.*"):
            found = HIDDEN.fullmatch(path.name)
            if found and folder / found[1] not in noted:
                path.unlink()


def publish(shards: Sequence[Path], classes: Sequence[str]) -> None:
    """Give hidden shards their names and remove those without images. May be repeated after a kill."""
    folders = {shard.parent for shard in shards}
    notes = {shard: note for shard in shards if (note := read_note(shard)) is not None}
    for folder in folders:
        made = {s.name: (n.images, n.bytes) for s, n in notes.items() if s.parent == folder and n.images}
        list_shards(folder, made)
    for shard, note in notes.items():
        hidden = hidden_name(shard, ".whole")
        if not note.images:
            hidden.unlink(missing_ok=True)
        elif hidden.exists():
            hidden.rename(shard)
    for folder in folders:
        write_classes(classes, folder)
    for shard in shards:
        hidden_name(shard, ".json").unlink()
    for folder in folders:  # of processes that were killed
        for path in folder.glob(".*shard-*.partial"):
            if HIDDEN.fullmatch(path.name):
                path.unlink()


def hidden_name(shard: Path, end: str) -> Path:
    """A name beside a shard that no pattern mistakes for a shard."""
    return shard.with_name(f".{shard.name}{end}")
