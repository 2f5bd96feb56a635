"""The images for a new data set: from folders of classes, a table of paths, or Parquet files."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePath
from random import Random
from typing import Any

from packvit.common.optional import need
from packvit.packing import read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
MOST_CLASSES = 10_000_000  # each has a name in classes.json and an output of the model


@dataclass(frozen=True, slots=True)
class FoundImage:
    """One image to be written.

    Args:
        name: where it comes from; the sample's key is derived from it.
        label: class index.
        load: returns the encoded file; may raise OSError or ValueError.
        stamp: size and time of the file that it is read from, to notice changes; empty if the file is gone.
    """

    name: PurePath
    label: int
    load: Callable[[], bytes]
    stamp: tuple[int, ...]


@dataclass
class FoundImages:
    """What was found.

    Args:
        classes: names in the order of their indices.
        images: in the order in which they are best read.
        left_out: sentences about files that are not images or have no label.
        empty: classes without a single image; they keep their index.
        random_access: False if images must be read nearly in their order.
    """

    classes: list[str]
    images: list[FoundImage] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    random_access: bool = True


def find_images(
    path: Path, seed: int = 0, image_column: str = "image", label_column: str = "label"
) -> FoundImages:
    """The images in `path`: a folder of class folders, a .csv file, or Parquet files in Hugging Face's
    layout.

    Raises:
        ValueError: there is nothing of the kind; names the path and what is missing.
        ImportError: there are Parquet files, but pyarrow is not installed.
    """
    if path.suffix == ".csv" and path.is_file():
        return find_in_csv(path, label_column)
    if path.suffix == ".parquet" and path.is_file():
        return find_in_parquet([path], seed, image_column, label_column)
    if not path.is_dir():
        raise ValueError(f"{path} is neither a folder nor a .csv or .parquet file")
    tables = sorted(path.glob("*.parquet"))
    if tables:
        return find_in_parquet(tables, seed, image_column, label_column)
    return find_in_folders(path)


def find_in_folders(folder: Path) -> FoundImages:
    """FOLDER/CLASS/**/IMAGE; classes get indices by sorted name."""
    visible = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    class_folders = sorted(visible, key=lambda path: path.name)
    if not class_folders:
        raise ValueError(
            f"{folder} has no class folders: put the images of each class in a folder of its own"
        )
    found = FoundImages([path.name for path in class_folders])
    found.left_out += [str(path) for path in sorted(folder.iterdir()) if path.is_file()]
    for label, class_folder in enumerate(class_folders):
        paths = sorted(class_folder.rglob("*"))
        links = [path for path in paths if path.is_symlink() and not path.is_file()]
        found.left_out += [f"{path} (a link)" for path in links]
        files = [path for path in paths if path.is_file()]
        images = [path for path in files if path.suffix.lower() in SUFFIXES]
        found.left_out += [str(path) for path in files if path.suffix.lower() not in SUFFIXES]
        found.empty += [] if images else [class_folder.name]
        for path in images:
            name = path.relative_to(folder)
            found.images.append(FoundImage(name, label, partial(read_image, path), stamp_of(path)))
    if not found.images:
        raise ValueError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))}) in its class folders")
    return found


def find_in_csv(file: Path, label_column: str = "label") -> FoundImages:
    """Rows of `path` (relative to the file's folder) and a label, with a header line."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text)
            columns = reader.fieldnames or ()
            table = list(enumerate(reader, 2))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not a CSV file in UTF-8: {error}") from error
    for column in ("path", label_column):
        if column not in columns:
            raise ValueError(f"{file} has no column {column!r}, only {', '.join(columns)}")
    rows = [(line, row["path"], row[label_column]) for line, row in table]
    good = [(PurePath(path), label) for _, path, label in rows if path and label]
    if not good:
        raise ValueError(f"{file} has no row with both a path and a {label_column}")
    classes, index = number_classes((label for _, label in good), file)
    found = FoundImages(classes)
    missing = [line for line, path, label in rows if not (path and label)]
    found.left_out = [f"{file}, line {line}: no path or no {label_column}" for line in missing]
    for path, label in good:
        name = path.relative_to(path.anchor)
        place = file.parent / path
        found.images.append(FoundImage(name, index[label], partial(read_image, place), stamp_of(place)))
    return found


def find_in_parquet(files: Sequence[Path], seed: int, image_column: str, label_column: str) -> FoundImages:
    """Rows of an encoded image (bytes, or Hugging Face's struct of bytes and path) and a label.

    Row groups are the unit of reading: their order is shuffled by `seed`, and so are the rows within each.
    """
    open_table = need("pyarrow.parquet", "parquet", "Parquet files need pyarrow").ParquetFile
    rng = Random(seed)
    labels: list[tuple[Path, int, int, Any]] = []
    groups: list[tuple[Path, int]] = []
    names: list[str] | None = None
    for file in files:
        try:
            table = open_table(file)
        except ValueError as error:
            raise ValueError(f"{file} is not a Parquet file: {error}") from error
        with table:
            schema = table.schema_arrow
            for column in (image_column, label_column):
                if column not in schema.names:
                    raise ValueError(f"{file} has no column {column!r}, only {', '.join(schema.names)}")
            described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            names = described.get("info", {}).get("features", {}).get(label_column, {}).get("names", names)
            groups += [(file, group) for group in range(table.num_row_groups)]
    rng.shuffle(groups)
    for file, group in groups:
        with open_table(file) as table:
            column = table.read_row_group(group, columns=[label_column])[label_column].to_pylist()
        rows = list(enumerate(column))
        rng.shuffle(rows)
        labels += [(file, group, row, label) for row, label in rows]
    good = [item for item in labels if item[3] is not None]
    if names:
        classes, index = names, {i: i for i in range(len(names))}
    else:
        classes, index = number_classes((item[3] for item in good), files[0])
    found = FoundImages(classes, random_access=False)
    stamps = {file: stamp_of(file) for file in files}
    for file, group, row, label in labels:
        name = PurePath(file.stem) / f"{group:04d}-{row:06d}"
        if label not in index:
            found.left_out.append(f"{file}, row {row} of group {group}: its label is {label}")
            continue
        load = partial(_read_row, file, group, row, image_column)
        found.images.append(FoundImage(name, index[label], load, stamps[file]))
    if not found.images:
        raise ValueError(f"{files[0]} has no row with a {label_column}")
    return found


def split(found: FoundImages, out: Path, val_fraction: float, rng: Random) -> dict[Path, list[FoundImage]]:
    """{folder: its images}: `val_fraction` of each class for `out/val`, the rest for `out/train`."""
    if not val_fraction:
        images = list(found.images)
        if found.random_access:
            rng.shuffle(images)
        return {out: images}
    places: dict[int, list[int]] = {}
    for place, image in enumerate(found.images):
        places.setdefault(image.label, []).append(place)
    held_out: set[int] = set()
    for members in places.values():
        held_out.update(rng.sample(members, round(len(members) * val_fraction)))
    train = [image for place, image in enumerate(found.images) if place not in held_out]
    val = [image for place, image in enumerate(found.images) if place in held_out]
    if found.random_access:
        rng.shuffle(train)
        rng.shuffle(val)
    return {out / "train": train, out / "val": val}


def number_classes(labels: Iterable[Any], file: Path) -> tuple[list[str], dict[Any, int]]:
    """Names by index, and {label: index}: whole numbers are kept, names are sorted.

    Raises:
        ValueError: a number is negative or too large; names the `file` that the labels come from.
    """
    distinct = set(labels)
    try:
        numbers = {label: int(label) for label in distinct}
        if any(isinstance(label, float) and label != number for label, number in numbers.items()):
            raise ValueError("a fraction is a name")
    except (ValueError, OverflowError):
        ordered = sorted(distinct, key=str)
        return [str(label) for label in ordered], {label: i for i, label in enumerate(ordered)}
    if min(numbers.values()) < 0:
        raise ValueError(f"{file}: label {min(numbers.values())} is negative")
    if max(numbers.values()) >= MOST_CLASSES:
        raise ValueError(
            f"{file}: label {max(numbers.values())} would be one of as many classes, more than "
            f"{MOST_CLASSES}: number the classes from 0, or give them names"
        )
    return [str(i) for i in range(max(numbers.values()) + 1)], numbers


def stamp_of(path: Path) -> tuple[int, ...]:
    """Size and time of change of a file; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=2)
def _row_group(file: Path, group: int, column: str) -> list[Any]:
    open_table = need("pyarrow.parquet", "parquet", "Parquet files need pyarrow").ParquetFile
    with open_table(file) as table:
        return table.read_row_group(group, columns=[column])[column].to_pylist()


def _read_row(file: Path, group: int, row: int, column: str) -> bytes:
    value = _row_group(file, group, column)[row]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError(f"row {row} of group {group} holds no image")
    return data
