"""Write the index beside each shard of a set, with which remote readers need to read only little of it."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from packvit.common.engine.engine import Engine
from packvit.common.engine.local import LocalEngine
from packvit.common.files import write_nameless
from packvit.common.stores.objects import is_object, write_object
from packvit.data.make.manifest import Listed, Listing
from packvit.data.samples.decode import read_native_size
from packvit.data.shards.beside import BEGINNING, beside, decode, encode, with_sizes
from packvit.data.shards.fetch import GZIP_SUFFIXES, FetchConfig
from packvit.data.shards.paths import ShardSet
from packvit.data.shards.redact import redact
from packvit.data.shards.shard import BadSample, BadShard, Shard
from packvit.data.shards.source import is_remote


def write_indices(shards: ShardSet, engine: Engine | None = None) -> Iterator[tuple[str, int | BadShard]]:
    """Write the index beside each shard that has no valid one, and list local shards in their folders'
    `manifest.json`; yields each shard and its number of samples, or what is wrong with it.

    A remote shard is read in parts: its headers, and the beginnings of its images.

    Args:
        engine: where the shards are read; by default in this process.

    Raises:
        ValueError: a shard is on a web server, which accepts no files, or a manifest is damaged.
        OSError: an index cannot be written.
    """
    for path in shards.paths:
        if is_remote(path) and not is_object(path):
            raise ValueError(f"{redact(path)}: no index can be written beside what is on a web server")
    engine = LocalEngine() if engine is None else engine
    with Listing() as listing:
        for path, found in engine.run(
            "indexing", write_index, [(path, shards.fetch) for path in shards.paths]
        ):
            if isinstance(found, BadShard):
                yield path, found
                continue
            samples, size = found
            if not is_remote(path):
                listing.add(Listed(Path(path), samples, size))
            yield path, samples


def write_index(path: str, fetch: FetchConfig) -> tuple[str, tuple[int, int] | BadShard]:
    """Write the index beside a shard that has none that fits.

    Returns:
        The path, and (samples, bytes) of the shard, or why it cannot be read.
    """
    try:
        return path, _write_index(Shard.look(path, fetch))
    except BadShard as error:
        return path, error


def _write_index(shard: Shard) -> tuple[int, int]:
    if shard.path.endswith(GZIP_SUFFIXES) or (shard.is_local and is_remote(shard.path)):
        raise BadShard(shard.path, "it is gzipped, so no part of it can be read by itself")
    if not _is_there(shard):
        sizes = []
        for member in range(len(shard)):
            try:
                sizes.append(read_native_size(shard, member))
            except BadSample:
                sizes.append((0, 0))  # whoever reads it finds out why
        data = encode(with_sizes(shard.index, sizes), shard.file.read_at(BEGINNING, 0), shard.file.size)
        _write(beside(shard.path), data)
    return len(shard), shard.file.size


def _is_there(shard: Shard) -> bool:
    """Whether the index beside a shard is of it."""
    if not shard.is_local:
        return shard.index.sizes is not None  # it was read from there
    try:
        data = Path(beside(shard.path)).read_bytes()
    except OSError:
        return False
    return decode(data, shard.file.read_at(BEGINNING, 0), shard.file.size) is not None


def _write(path: str, data: bytes) -> None:
    if is_object(path):
        with TemporaryDirectory() as folder:
            file = Path(folder) / "index"
            file.write_bytes(data)
            write_object(file, path)
    else:
        write_nameless(Path(path), lambda file: file.write(data))
