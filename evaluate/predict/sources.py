"""The images that a command line names: files, folders, globs, shards, and names on standard input.

Everything named on the command line must exist before the work begins. Folders, shards and standard input are
read during the work; an image that turns out to be missing then is an image with an error.
"""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import BinaryIO

from packvit.data import (
    IMAGE_FIELDS,
    SHARD_SUFFIXES,
    BadShard,
    FetchConfig,
    Shard,
    expand_shards,
    is_remote,
    redact,
)

SUFFIXES = tuple(f".{name}" for name in (*IMAGE_FIELDS, "gif", "pnm"))
STDIN = "-"
BLOCK = 1 << 16  # bytes


@dataclass(frozen=True, slots=True)
class Named:
    """One image by its name.

    Args:
        name: the path, or that of the shard followed by the sample's key, without secrets.
        source: the path, or a function that returns the bytes, or raises.
    """

    name: str
    source: str | Callable[[], bytes]


@dataclass(frozen=True)
class Found:
    """The images that the names stand for.

    Args:
        images: in the order of the names; those of a folder and a glob are sorted by name. To be read once.
        number: number of images, if it is known before they are read.
    """

    images: Iterator[Named]
    number: int | None


def find_named(names: Sequence[str], stdin: BinaryIO, separator: bytes, fetch: FetchConfig) -> Found:
    """The images of all names.

    Args:
        names: files, folders (with everything below them except hidden files), globs (`**` for any folders),
            shards (local, URLs, brace patterns), and `-` for standard input, whose names are those of image
            files and local shards, taken literally.
        separator: separator of the names on standard input.
        fetch: how shards that are not local are fetched.

    Raises:
        ValueError: something does not exist, a folder or glob has no image, or there is no name on standard
            input.
    """
    if not names:
        raise ValueError("no images are named")
    if names.count(STDIN) > 1:
        raise ValueError("standard input, -, is named twice")
    parts: list[Iterator[Named]] = []
    number: int | None = 0
    for name in names:
        if name == STDIN:
            lines = read_names(stdin, separator)
            images = chain.from_iterable(_literal(line, fetch) for line in lines)
            parts.append(_not_empty(images, "standard input has no names"))
            number = None
        else:
            images, some = _expand(name, fetch)
            parts.append(_not_empty(images, f"no image is in {redact(name)}"))
            number = None if number is None or some is None else number + some
    return Found(chain.from_iterable(parts), number)


def _not_empty(images: Iterator[Named], otherwise: str) -> Iterator[Named]:
    """The same images; a ValueError if there is none."""
    first = next(images, None)
    if first is None:
        raise ValueError(otherwise)
    return chain([first], images)


def _expand(name: str, fetch: FetchConfig) -> tuple[Iterator[Named], int | None]:
    """The images of one name, and their number where it is known."""
    if os.path.isdir(name):
        return walk(name, fetch), None
    paths = [name]
    if is_remote(name) or name.endswith(SHARD_SUFFIXES):
        paths = expand_shards(name)
    elif not os.path.exists(name):
        matched = glob.glob(name, recursive=True) if glob.has_magic(name) else []
        paths = sorted(path for path in matched if not os.path.isdir(path))
        if not paths:
            raise ValueError(f"{name}: no such image, folder or shard")
    number = None if any(map(is_shard, paths)) else len(paths)
    return chain.from_iterable(_images_of(path, fetch) for path in paths), number


def is_shard(path: str) -> bool:
    """Whether a path is that of a shard, judging by its name."""
    return is_remote(path) or path.endswith(SHARD_SUFFIXES)


def walk(folder: str, fetch: FetchConfig) -> Iterator[Named]:
    """Images of a folder and those below it, shards too, sorted within each; hidden ones are left out, and
    links to folders are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Named(folder, partial(_fail, f"it cannot be read ({error.strerror})"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, fetch)
        elif entry.name.lower().endswith(SUFFIXES) or is_shard(entry.name):
            yield from _images_of(entry.path, fetch)


def _images_of(path: str, fetch: FetchConfig) -> Iterator[Named]:
    """The images of a shard, or the image."""
    if not is_shard(path):
        yield Named(path, path)
        return
    name = redact(path)
    try:
        shard = Shard.open(path, fetch)
    except BadShard as error:
        yield Named(name, partial(_fail, error.reason))
        return
    for member in range(len(shard)):
        yield Named(f"{name}/{shard.key(member)}", partial(shard.image, member))
    for problem in shard.problems:
        yield Named(name, partial(_fail, problem))


def _literal(name: str, fetch: FetchConfig) -> Iterator[Named]:
    """What a name on standard input stands for. Whoever wrote the list may start nothing here."""
    if is_remote(name):
        return iter([Named(redact(name), partial(_fail, "names on standard input are those of local files"))])
    return _images_of(name, fetch)


def _fail(reason: str) -> bytes:
    raise ValueError(reason)


def read_names(file: BinaryIO, separator: bytes) -> Iterator[str]:
    """The names in a file, one at a time; empty ones are left out."""
    rest = b""
    while block := file.readline(BLOCK):
        *names, rest = (rest + block).split(separator)
        yield from (os.fsdecode(name) for name in names if name)
    if rest:
        yield os.fsdecode(rest)
