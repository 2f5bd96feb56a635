"""Write webdataset shards: one tar holds `key.jpg` and `key.cls` of each sample, side by side.

Equal input gives equal bytes (fixed owner, time and order). Shards are written under temporary names and
renamed when all of them are complete and on the disk, so a folder never shows an incomplete data set.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from webdataset.writer import TarWriter

from packvit.common.files import sync, write_whole
from packvit.data.make.manifest import list_shards
from packvit.data.shards.class_names import CLASSES


@dataclass(frozen=True, slots=True)
class Sample:
    """One member of a shard.

    Args:
        key: unique name without a dot; may have folders.
        image: the encoded file.
        extension: `jpg`, `png` or `webp`.
        label: class index, or None if the task needs none.
        caption: written as `txt` if there is one; several captions are separate lines.
    """

    key: str
    image: bytes
    extension: str
    label: int | None = None
    caption: str | None = None


def write_shards(
    samples: Iterable[Sample], out: Path, shard_size: int = 1000, prefix: str = "shard"
) -> list[Path]:
    """Write samples in their order to `out/PREFIX-000000.tar` and so on, and list the shards in
    `out/manifest.json`; returns the shards.

    Args:
        samples: read one at a time, so that a large set need not fit in memory.
        out: folder, created if it is missing.
        shard_size: samples in a shard; the last one may have fewer.
        prefix: the beginning of the shards' names.

    Raises:
        ValueError: shard_size below 1, shards already in `out`, a key twice or with a dot, or no sample.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size} must be at least 1")
    check_no_shards(out, prefix)
    out.mkdir(parents=True, exist_ok=True)
    finished: dict[Path, Path] = {}  # shards by the temporary names
    counts: list[int] = []
    keys: set[str] = set()
    try:
        for number, part in groupby(enumerate(samples), lambda numbered: numbered[0] // shard_size):
            path = out / f"{prefix}-{number:06d}.tar"
            temporary = path.with_name(f".{path.name}.partial")
            finished[temporary] = path
            counts.append(0)
            with open_tar(temporary) as writer:
                for _, sample in part:
                    if sample.key in keys or not sample.key or "." in sample.key:
                        raise ValueError(f"sample key {sample.key!r} must be unique and contain no dot")
                    keys.add(sample.key)
                    member: dict[str, str | bytes] = {"__key__": sample.key, sample.extension: sample.image}
                    if sample.label is not None:
                        member["cls"] = str(sample.label).encode()
                    if sample.caption is not None:
                        member["txt"] = sample.caption.encode()
                    writer.write(member)
                    counts[-1] += 1
        if not finished:
            raise ValueError(f"there is no sample to write to {out}")
        sizes = [temporary.stat().st_size for temporary in finished]
        names = [path.name for path in finished.values()]
        list_shards(out, dict(zip(names, zip(counts, sizes, strict=True), strict=True)))
        for temporary, path in finished.items():
            temporary.rename(path)
    finally:
        for temporary in finished:
            temporary.unlink(missing_ok=True)
    return list(finished.values())


@contextmanager
def open_tar(path: Path) -> Iterator[TarWriter]:
    """A new tar file, whose bytes depend only on what is written; at the end it is on the disk."""
    # A stream, because webdataset takes some names for addresses.
    with (
        path.open("wb") as stream,
        TarWriter(stream, mtime=0, user="packvit", group="packvit", encoder=False) as writer,
    ):
        yield writer
    sync(path)


def check_no_shards(out: Path, prefix: str = "shard") -> None:
    """Raise a ValueError if `out` holds shards, because a smaller new set would be mixed with them."""
    if any(out.glob(f"{prefix}-*.tar")):
        raise ValueError(f"{out} already holds shards: name another folder or delete them first")


def write_classes(classes: Sequence[str], out: Path) -> None:
    """Write `out/classes.json`, the list of class names; it comes last and so marks a complete folder."""
    write_whole(out / CLASSES, json.dumps(list(classes), indent=0, ensure_ascii=False) + "\n")
