"""Write webdataset shards: one tar holds `key.jpg` and `key.cls` of each sample, side by side.

Equal input gives equal bytes (fixed owner, time and order). Shards are written under temporary names and
renamed when all of them are complete, so a folder never shows a part of a data set.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from PIL import Image
from webdataset.writer import TarWriter

from packvit.data.decode import decode, native_size_of
from packvit.packing import derive_seed, full_view

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a JPEG of several pictures
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
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
class FolderReport:
    """What `write_image_folder` did.

    Args:
        classes: names in the order of their indices.
        images: {folder of shards: images written}.
        broken: image files that cannot be decoded, with the reason; left out.
        not_images: other files and links to folders, left out.
        empty: classes without a single image; they keep their index.
    """

    classes: list[str]
    images: dict[Path, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    not_images: list[str] = field(default_factory=list)
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


def write_image_folder(
    folder: Path,
    out: Path,
    *,
    val_fraction: float = 0.0,
    shard_size: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> FolderReport:
    """Write FOLDER/CLASS/**/IMAGE to shards; files are stored as they are, in an order shuffled by `seed`.

    Classes get indices by sorted name, written to `classes.json` beside the shards. Every image is decoded
    once, to leave out the broken ones.

    Args:
        folder: has one folder for each class.
        out: gets the shards, or `train` and `val` with shards if `val_fraction` is above 0.
        val_fraction: share of every class's images for `out/val`, in [0, 1).
        shard_size: samples in a shard.
        seed: of the order and of the split.
        progress: called with (files done, files) after each file.

    Raises:
        ValueError: no such folder, no class folders, no images, shards already in `out`, or a bad option.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must be in [0, 1)")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    visible = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    class_folders = sorted(visible, key=lambda path: path.name)
    if not class_folders:
        raise ValueError(
            f"{folder} has no class folders: put the images of each class in a folder of its own"
        )
    report = FolderReport(classes=[path.name for path in class_folders])
    report.not_images += [str(path) for path in sorted(folder.iterdir()) if path.is_file()]

    rng = Random(derive_seed(seed, "write_image_folder"))
    splits: dict[Path, list[tuple[Path, int]]] = {}
    for label, class_folder in enumerate(class_folders):
        found = sorted(class_folder.rglob("*"))
        files = [path for path in found if path.is_file()]
        report.not_images += [
            f"{path} (a link)" for path in found if path.is_symlink() and not path.is_file()
        ]
        images = [path for path in files if path.suffix.lower() in SUFFIXES]
        report.not_images += [str(path) for path in files if path.suffix.lower() not in SUFFIXES]
        report.empty += [] if images else [class_folder.name]
        rng.shuffle(images)
        held_out = round(len(images) * val_fraction)
        val, train = (out / "val", out / "train") if val_fraction else (out, out)
        splits.setdefault(train, []).extend((path, label) for path in images[held_out:])
        splits.setdefault(val, []).extend((path, label) for path in images[:held_out])
    total = sum(map(len, splits.values()))
    if not total:
        raise ValueError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))}) in its class folders")
    for target, files in splits.items():
        check_no_shards(target)
        if not files:
            raise ValueError(f"{target} would be empty: val_fraction={val_fraction} of so few images")

    keys = KeyMaker()
    done = 0

    def read(target: Path, files: list[tuple[Path, int]]) -> Iterator[Sample]:
        nonlocal done
        for path, label in files:
            try:
                image, extension = read_image(path)
            except (OSError, ValueError) as error:
                report.broken.append(f"{path}: {error}")
            else:
                report.images[target] = report.images.get(target, 0) + 1
                yield Sample(keys.make(path.relative_to(folder)), image, extension, label)
            done += 1
            if progress:
                progress(done, total)

    for target, files in splits.items():
        rng.shuffle(files)
        write_shards(read(target, files), target, shard_size)
        write_classes(report.classes, target)
    return report


def read_image(path: Path) -> tuple[bytes, str]:
    """The file's bytes and its extension by content, after decoding it once as training will.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no image of these formats, broken, or too large.
    """
    content = path.read_bytes()
    size = native_size_of(content)
    decode(content, full_view(size, 1), size)
    with Image.open(io.BytesIO(content)) as image:
        if image.format not in EXTENSIONS:
            raise ValueError(f"it is a {image.format} file, none of {', '.join(EXTENSIONS)}")
        return content, EXTENSIONS[image.format]


class KeyMaker:
    """Sample keys from relative paths: no dots, short enough for a tar header, never one twice."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def make(self, path: Path) -> str:
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
