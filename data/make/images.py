"""Pack the images of a data set into shards, shuffled, split, and each decoded once.

Every shard is written under a hidden name, with a note of what it was made of (see packvit.data.make.hidden);
all get their names when the last one is finished. The plan says which image, with which key, label, size and
time, goes into which shard. After a kill, the same command keeps the shards of the same plan. If an image was
moved, changed, added or removed in between, it writes all shards anew.
"""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from random import Random
from secrets import token_hex

from filelock import FileLock, Timeout
from PIL import Image

from packvit.common.engine.engine import Engine
from packvit.common.files import check_shared, check_writable, hash_file
from packvit.data.make.hidden import Note, clear, hidden_name, publish, read_note
from packvit.data.make.sources import FoundImage, find_images, split
from packvit.data.make.write import open_tar
from packvit.data.samples.decode import decode
from packvit.packing import derive_seed, full_view, native_size_of

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a JPEG of several pictures
LONGEST_KEY = 80  # bytes; a ustar header has room for 100 with the extension

Progress = Callable[[int, int], None]
Part = list[tuple[str, FoundImage]]  # the images of a shard by their keys


@dataclass
class WriteReport:
    """What `write_images` did.

    Args:
        classes: names in the order of their indices.
        images: {folder of shards: images written}.
        broken: images that cannot be decoded, with the reason; left out.
        left_out: files that are not images or have no label.
        empty: classes without a single image; they keep their index.
    """

    classes: list[str]
    images: dict[Path, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WriteConfig:
    """How images become shards.

    Args:
        val_fraction: share of every class's images kept for validation, in [0, 1).
        shard_size: images in a shard, the broken ones included.
        seed: seed of the shuffled order and of the split.
        image_column: column of the images in Parquet files.
        label_column: column of the labels in .csv and Parquet files.
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
    path: Path,
    out: Path,
    config: WriteConfig = DEFAULTS,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> WriteReport:
    """Write the images that `find_images` finds at `path` to shards.

    Files are stored unchanged, in an order shuffled by the seed, and every image is decoded once, to leave
    out the broken ones. Class names go to `classes.json` beside the shards, and the content of each shard to
    `manifest.json`. After a kill, the same call continues with the first shard that is missing.

    Args:
        path: a folder of class folders, a .csv file, or a .parquet file or a folder of them.
        out: gets the shards, or `train` and `val` with shards if the val fraction is above 0.
        progress: called with (images done, images) after each one, unless there is an engine.
        engine: writes the shards, on storage that all its machines share; by default this process does.

    Raises:
        ValueError: see `find_images`; shards already in `out`, another command that writes there, or a set
            without a usable image.
    """
    check_writable(out, "the folder")
    found = find_images(path, config.seed, config.image_column, config.label_column)
    report = WriteReport(found.classes, left_out=found.left_out, empty=found.empty)
    rng = Random(derive_seed(config.seed, "write_images"))
    splits = split(found, out, config.val_fraction, rng)
    for target, images in splits.items():
        if not images:
            raise ValueError(f"{target} would be empty: val_fraction={config.val_fraction} of so few images")
    parts = plan_parts(splits, config.shard_size)
    plan = hash_plan(found.classes, parts)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            clear([shard for shard, _ in parts], plan)
            write_parts(parts, plan, report, progress, engine)
            for target, written in report.images.items():
                if not written:
                    raise ValueError(f"no image for {target} can be used: {report.broken[0]}")
            publish([shard for shard, _ in parts], report.classes)
    except Timeout as error:
        raise ValueError(f"another command is writing to {out}: end it, or use another folder") from error
    return report


def plan_parts(splits: dict[Path, list[FoundImage]], shard_size: int) -> list[tuple[Path, Part]]:
    """Decide which images, by their keys, go into which shard."""
    keys = KeyMaker()
    parts = []
    for target, images in splits.items():
        named = [(keys.make(image.name), image) for image in images]
        for start in range(0, len(named), shard_size):
            shard = target / f"shard-{start // shard_size:06d}.tar"
            parts.append((shard, named[start : start + shard_size]))
    return parts


def hash_plan(classes: Sequence[str], parts: Sequence[tuple[Path, Part]]) -> str:
    """A hash of everything that the shards are made of: equal hashes give equal shards."""
    digest = hashlib.sha256(repr(list(classes)).encode())
    for shard, part in parts:
        lines = [(key, str(image.name), image.label, image.stamp) for key, image in part]
        digest.update(repr((shard.name, lines)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def hash_source(path: Path, config: WriteConfig) -> str:
    """A hash of all that `write_images` finds, without a look into the files; raises like it."""
    found = find_images(path, config.seed, config.image_column, config.label_column)
    return hash_plan(found.classes, [(path, [("", image) for image in found.images])])


def write_parts(
    parts: Sequence[tuple[Path, Part]],
    plan: str,
    report: WriteReport,
    progress: Progress | None,
    engine: Engine | None,
) -> None:
    """Write all missing shards under hidden names, and count what is in all of them."""
    report.images = {shard.parent: 0 for shard, _ in parts}
    done, total = 0, sum(len(part) for _, part in parts)

    def step(number: int) -> None:
        if progress:
            progress(done + number, total)

    for folder in report.images:
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [(str(shard), part, plan) for shard, part in parts]
    notes = (make_part(*job, step) for job in jobs)
    if engine is not None:
        notes = engine.run("writing", make_part, jobs)
    for note, (shard, part) in zip(notes, parts, strict=True):
        note.require_shared(shard)
        report.images[shard.parent] += note.images
        report.broken += note.broken
        done += len(part)


def make_part(shard: str, images: Part, plan: str, step: Callable[[int], None] | None = None) -> Note:
    """Write one shard under a hidden name beside `shard`, and what became of it to a note, if a whole one of
    the same plan is not there.

    Args:
        step: called with the number of images that are done.
    """
    check_shared(Path(shard).parent)
    note = read_note(Path(shard))
    if note is not None and note.plan == plan and note.fits(Path(shard)):
        if step:
            step(len(images))
        return note
    return write_part(images, Path(shard), plan, step)


def write_part(images: Part, shard: Path, plan: str, step: Callable[[int], None] | None) -> Note:
    """As `make_part`, whatever is there."""
    # A process that was taken for lost may still write the same shard.
    unfinished, whole = hidden_name(shard, f".{token_hex(4)}.partial"), hidden_name(shard, ".whole")
    broken: list[str] = []
    with open_tar(unfinished) as writer:
        for number, (key, image) in enumerate(images, 1):
            try:
                data = image.load()
                member = {"__key__": key, extension_of(data): data, "cls": str(image.label).encode()}
            except (OSError, ValueError) as error:
                broken.append(f"{image.name}: {error}")
            else:
                writer.write(member)
            if step:
                step(number)
    unfinished.rename(whole)
    note = Note(plan, len(images) - len(broken), broken, whole.stat().st_size, hash_file(whole))
    note.write(shard)
    return note


def extension_of(data: bytes) -> str:
    """The extension of an encoded image by its content, after decoding it once as training will.

    Raises:
        ValueError: it is not an image in one of the formats that shards hold, is broken, or too large.
    """
    size = native_size_of(data)
    decode(data, full_view(size, 1), size)
    with Image.open(io.BytesIO(data)) as image:
        if image.format not in EXTENSIONS:
            raise ValueError(f"it is a {image.format} file, none of {', '.join(EXTENSIONS)}")
        return EXTENSIONS[image.format]


class KeyMaker:
    """Sample keys from relative paths: without dots, short enough for a tar header, and unique."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def make(self, path: PurePath) -> str:
        """`cats/tom.cat.jpg` -> `cats/tom_cat`, followed by `-2` and so on if that is taken."""
        name = re.sub(r"[^\w/-]", "_", path.with_suffix("").as_posix())
        if len(name.encode()) > LONGEST_KEY:
            name = f"long/{derive_seed(path.as_posix()):032x}"
        key, count = name, 1
        while key in self._taken:
            count += 1
            key = f"{name}-{count}"
        self._taken.add(key)
        return key
