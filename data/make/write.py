"""Write webdataset shards: one tar holds `key.jpg` and `key.cls` of each sample, side by side.

Equal input gives equal bytes (fixed owner, time and order). Shards are written under temporary names and
renamed when all of them are complete, so a folder never shows a part of a data set.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from random import Random

from PIL import Image
from webdataset.writer import TarWriter

from packvit.data.make.sources import FoundImage, find_images, split
from packvit.data.samples.decode import decode, native_size_of
from packvit.packing import derive_seed, full_view

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a JPEG of several pictures
LONGEST_KEY = 80  # bytes; a ustar header has room for 100 with the extension

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """One member of a shard.

    Args:
        key: unique name without a dot; may have folders.
        image: the encoded file.
        extension: `jpg`, `png` or `webp`.
        label: class index, or None where the task has none.
    """

    key: str
    image: bytes
    extension: str
    label: int | None = None


@dataclass
class WriteReport:
    """What `write_images` did.

    Args:
        classes: names in the order of their indices.
        images: {folder of shards: images written}.
        broken: images that cannot be decoded, with the reason; left out.
        left_out: what is no image or has no label.
        empty: classes without a single image; they keep their index.
    """

    classes: list[str]
    images: dict[Path, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def write_shards(
    samples: Iterable[Sample], out: Path, shard_size: int = 1000, prefix: str = "shard"
) -> list[Path]:
    """Write samples in their order to `out/PREFIX-000000.tar` and on; returns the shards.

    Args:
        samples: read one at a time, so that a large set need not fit in memory.
        out: folder, made if it is missing.
        shard_size: samples in a shard; the last one may have fewer.
        prefix: how the shards' names begin.

    Raises:
        ValueError: shard_size below 1, shards already in `out`, a key twice or with a dot, or no sample.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size} must be at least 1")
    check_no_shards(out, prefix)
    out.mkdir(parents=True, exist_ok=True)
    finished: list[tuple[Path, Path]] = []
    writer: TarWriter | None = None
    keys: set[str] = set()
    try:
        for index, sample in enumerate(samples):
            if sample.key in keys or not sample.key or "." in sample.key:
                raise ValueError(f"sample key {sample.key!r} must be there once, and without a dot")
            keys.add(sample.key)
            if index % shard_size == 0:
                if writer:
                    writer.close()
                path = out / f"{prefix}-{index // shard_size:06d}.tar"
                temporary = path.with_name(f".{path.name}.partial")
                finished.append((temporary, path))
                writer = TarWriter(str(temporary), mtime=0, user="packvit", group="packvit", encoder=False)
            assert writer is not None
            member: dict[str, str | bytes] = {"__key__": sample.key, sample.extension: sample.image}
            if sample.label is not None:
                member["cls"] = str(sample.label).encode()
            writer.write(member)
        if not finished:
            raise ValueError(f"there is no sample to write to {out}")
        if writer:
            writer.close()
            writer = None
        for temporary, path in finished:
            temporary.rename(path)
    finally:
        if writer:
            writer.close()
        for temporary, _ in finished:
            temporary.unlink(missing_ok=True)
    return [path for _, path in finished]


def check_no_shards(out: Path, prefix: str = "shard") -> None:
    """Raise a ValueError if `out` holds shards, which a smaller new set would mix with."""
    if any(out.glob(f"{prefix}-*.tar")):
        raise ValueError(f"{out} already holds shards: name another folder or delete them first")


def write_classes(classes: Sequence[str], out: Path) -> None:
    """Write `out/classes.json`, the list of class names; it comes last and so marks a complete folder."""
    temporary = out / ".classes.json.partial"
    temporary.write_text(json.dumps(list(classes), indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.rename(out / "classes.json")


@dataclass(frozen=True)
class WriteConfig:
    """How images become shards.

    Args:
        val_fraction: share of every class's images kept for validation, in [0, 1).
        shard_size: images in a shard, the broken ones included.
        seed: of the shuffled order and of the split.
        image_column: of Parquet files.
        label_column: of .csv and Parquet files.
    """

    val_fraction: float = 0.0
    shard_size: int = 1000
    seed: int = 0
    image_column: str = "image"
    label_column: str = "label"

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction} must be in [0, 1)")
        if self.shard_size < 1:
            raise ValueError(f"shard_size={self.shard_size} must be at least 1")


DEFAULTS = WriteConfig()


def write_images(
    path: Path, out: Path, config: WriteConfig = DEFAULTS, progress: Progress | None = None
) -> WriteReport:
    """Write the images that `find_images` finds at `path` to shards.

    Files are stored as they are, in an order shuffled by the seed, and every image is decoded once, to leave
    out the broken ones. Class names go to `classes.json` beside the shards. Shards have hidden names until
    all are complete; the same call after a kill goes on with the first that is missing.

    Args:
        path: a folder of class folders, a .csv file, or a .parquet file or a folder of them.
        out: gets the shards, or `train` and `val` with shards if the val fraction is above 0.
        progress: called with (images done, images) after each one.

    Raises:
        ValueError: see `find_images`; shards already in `out`, or a set without a usable image.
    """
    seed, shard_size = config.seed, config.shard_size
    found = find_images(path, seed, config.image_column, config.label_column)
    report = WriteReport(found.classes, left_out=found.left_out, empty=found.empty)
    splits = split(found, out, config.val_fraction, Random(derive_seed(seed, "write_images")))
    sizes = map(len, splits.values())
    plan = f"{derive_seed(str(path), str(config.val_fraction), shard_size, seed, *sizes):032x}"
    for target, images in splits.items():
        if not any(read_note(shard)["plan"] == plan for shard in target.glob("shard-*.tar")):
            check_no_shards(target)
        if not images:
            raise ValueError(f"{target} would be empty: val_fraction={config.val_fraction} of so few images")
    parts = plan_parts(splits, shard_size)
    report.images = dict.fromkeys(splits, 0)
    done, total = 0, sum(map(len, splits.values()))
    for shard, part in parts:
        shard.parent.mkdir(parents=True, exist_ok=True)
        note = read_note(shard)
        if note["plan"] != plan:
            note = write_part(part, shard, plan, done, total, progress)
        report.images[shard.parent] += note["images"]
        report.broken += note["broken"]
        done += len(part)
    for target, written in report.images.items():
        if not written:
            raise ValueError(f"no image for {target} can be used: {report.broken[0]}")
    publish([shard for shard, _ in parts])
    for target in splits:
        write_classes(report.classes, target)
    return report


def plan_parts(
    splits: dict[Path, list[FoundImage]], shard_size: int
) -> list[tuple[Path, list[tuple[str, FoundImage]]]]:
    """Which images, by their keys, go into which shard."""
    keys = KeyMaker()
    parts = []
    for target, images in splits.items():
        named = [(keys.make(image.name), image) for image in images]
        for start in range(0, len(named), shard_size):
            shard = target / f"shard-{start // shard_size:06d}.tar"
            parts.append((shard, named[start : start + shard_size]))
    return parts


def write_part(
    images: Sequence[tuple[str, FoundImage]],
    shard: Path,
    plan: str,
    done: int,
    total: int,
    progress: Progress | None,
) -> dict:
    """Write one shard under a hidden name beside `shard`, and what became of it to a note.

    Returns:
        The note: the `plan` it belongs to, the number of `images` in it and a sentence for each `broken` one.
    """
    unfinished = hidden_name(shard, ".partial")
    broken: list[str] = []
    with TarWriter(str(unfinished), mtime=0, user="packvit", group="packvit", encoder=False) as writer:
        for number, (key, image) in enumerate(images, done + 1):
            try:
                data = image.load()
                member = {"__key__": key, extension_of(data): data, "cls": str(image.label).encode()}
            except (OSError, ValueError) as error:
                broken.append(f"{image.name}: {error}")
            else:
                writer.write(member)
            if progress:
                progress(number, total)
    unfinished.rename(hidden_name(shard, ".whole"))
    note = {"plan": plan, "images": len(images) - len(broken), "broken": broken}
    hidden_name(shard, ".json").write_text(json.dumps(note))
    return note


def read_note(shard: Path) -> dict:
    """The note of a shard that is not published yet; one of no plan if there is none."""
    try:
        return json.loads(hidden_name(shard, ".json").read_text())
    except (OSError, ValueError):
        return {"plan": None}


def publish(shards: Sequence[Path]) -> None:
    """Give hidden shards their names; those without a single image go. May be repeated after a kill."""
    for shard in shards:
        hidden = hidden_name(shard, ".whole")
        if not read_note(shard)["images"]:
            hidden.unlink(missing_ok=True)
        elif hidden.exists():
            hidden.rename(shard)
    for shard in shards:
        hidden_name(shard, ".json").unlink()


def hidden_name(shard: Path, end: str) -> Path:
    """A name beside a shard that no pattern takes for a shard's."""
    return shard.with_name(f".{shard.name}{end}")


def extension_of(data: bytes) -> str:
    """The extension of an encoded image by its content, after decoding it once as training will.

    Raises:
        ValueError: it is no image of the formats that shards hold, broken, or too large.
    """
    size = native_size_of(data)
    decode(data, full_view(size, 1), size)
    with Image.open(io.BytesIO(data)) as image:
        if image.format not in EXTENSIONS:
            raise ValueError(f"it is a {image.format} file, none of {', '.join(EXTENSIONS)}")
        return EXTENSIONS[image.format]


class KeyMaker:
    """Sample keys from relative paths: no dots, short enough for a tar header, never one twice."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def make(self, path: PurePath) -> str:
        """`cats/tom.cat.jpg` -> `cats/tom_cat`, with `-2` and on after it if that is taken."""
        name = re.sub(r"[^\w/-]", "_", path.with_suffix("").as_posix())
        if len(name.encode()) > LONGEST_KEY:
            name = f"long/{derive_seed(path.as_posix()):032x}"
        key, count = name, 1
        while key in self._taken:
            count += 1
            key = f"{name}-{count}"
        self._taken.add(key)
        return key
