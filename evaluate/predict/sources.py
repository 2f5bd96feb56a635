"""The images that a command line names: files, folders, globs, shards, and names on standard input.

Everything named on the command line must exist before the work begins. Folders, shards and standard input are
read during the work; an image that turns out to be missing then is an image with an error.
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from packvit.evaluate.predict.read import Break

SUFFIXES = tuple(f".{name}" for name in (*IMAGE_FIELDS, "gif", "pnm"))
STDIN = "-"
BLOCK = 1 << 16  # bytes
FILES = 1024  # images that are files of their own in a part


@dataclass(frozen=True, slots=True)
class Named:
    """One image by its name.

    Args:
        name: the path, or that of the shard followed by the sample's key, without secrets.
        source: the path, or a function that returns the bytes, or raises.
    """

    name: str
    source: str | Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Place:
    """Where images are: a file that is one, or a shard.

    Args:
        path: of it; without secrets, where there is an error.
        error: why it cannot be used.
    """

    path: str
    error: str | None = None

    @property
    def is_shard(self) -> bool:
        """Whether it has any number of images."""
        return self.error is None and is_shard(self.path)

    def images(self, fetch: FetchConfig) -> Iterator[Named]:
        """The images of a shard, or the image; what cannot be used raises when it is read."""
        if self.error is not None:
            yield Named(self.path, partial(_fail, self.error))
            return
        if not self.is_shard:
            yield Named(self.path, self.path)
            return
        name = redact(self.path)
        try:
            shard = Shard.open(self.path, fetch)
        except BadShard as error:
            yield Named(name, partial(_fail, error.reason))
            return
        for member in range(len(shard)):
            yield Named(f"{name}/{shard.key(member)}", partial(shard.image, member))
        for problem in shard.problems:
            yield Named(name, partial(_fail, problem))


@dataclass(frozen=True)
class Found:
    """The images that the names stand for.

    Args:
        places: in the order of the names; those of a folder and a glob are sorted by name. To be read once.
        number: number of images, if it is known before they are read.
        fetch: how shards that are not local are fetched.
    """

    places: Iterator[Place]
    number: int | None
    fetch: FetchConfig

    def images(self) -> Iterator[Named | Break]:
        """The images, with a break between one part and the next. To be read once, instead of `places`."""
        for place, begins in mark_parts(self.places):
            if begins:
                yield Break.BREAK
            yield from place.images(self.fetch)

    def parts(self) -> Iterator[list[Place]]:
        """Places whose images are answered together; likewise."""
        part: list[Place] = []
        for place, begins in mark_parts(self.places):
            if begins and part:
                yield part
                part = []
            part.append(place)
        if part:
            yield part


def mark_parts(places: Iterable[Place]) -> Iterator[tuple[Place, bool]]:
    """The places, and whether a part begins with them: shards are parts, and so many files in a row."""
    room = 0
    for place in places:
        begins = room == 0 or place.is_shard
        room = 0 if place.is_shard else (FILES if begins else room) - 1
        yield place, begins


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
    parts: list[Iterator[Place]] = []
    number: int | None = 0
    for name in names:
        if name == STDIN:
            places = map(_literal, read_names(stdin, separator))
            parts.append(_not_empty(places, "standard input has no names", fetch))
            number = None
        else:
            places, some = _expand(name)
            parts.append(_not_empty(places, f"no image is in {redact(name)}", fetch))
            number = None if number is None or some is None else number + some
    return Found(chain.from_iterable(parts), number, fetch)


def _not_empty(places: Iterator[Place], otherwise: str, fetch: FetchConfig) -> Iterator[Place]:
    """The same places; a ValueError where there is no image in any."""
    seen = []
    for place in places:
        seen.append(place)
        if next(place.images(fetch), None) is not None:
            return chain(seen, places)
    raise ValueError(otherwise)


def _expand(name: str) -> tuple[Iterator[Place], int | None]:
    """The places of one name, and the number of images where it is known."""
    if os.path.isdir(name):
        return walk(name), None
    paths = [name]
    if is_remote(name) or name.endswith(SHARD_SUFFIXES):
        paths = expand_shards(name)
    elif not os.path.exists(name):
        matched = glob.glob(name, recursive=True) if glob.has_magic(name) else []
        paths = sorted(path for path in matched if not os.path.isdir(path))
        if not paths:
            raise ValueError(f"{name}: no such image, folder or shard")
    number = None if any(map(is_shard, paths)) else len(paths)
    return map(Place, paths), number


def is_shard(path: str) -> bool:
    """Whether a path is that of a shard, judging by its name."""
    return is_remote(path) or path.endswith(SHARD_SUFFIXES)


def walk(folder: str) -> Iterator[Place]:
    """Images of a folder and those below it, shards too, sorted within each; hidden ones are left out, and
    links to folders are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Place(folder, f"it cannot be read ({error.strerror})")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif entry.name.lower().endswith(SUFFIXES) or is_shard(entry.name):
            yield Place(entry.path)


def _literal(name: str) -> Place:
    """What a name on standard input stands for. Whoever wrote the list may start nothing here."""
    if is_remote(name):
        return Place(redact(name), "names on standard input are those of local files")
    return Place(name)


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
