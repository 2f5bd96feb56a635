"""The index of a shard that lies beside it, `shard-000000.tar.idx`, as `packvit shards index` writes it.

From some 60 bytes a sample, a reader on another machine then knows where each sample lies, and the native
sizes of the images, without reading the shard. It is a .npz file without compression, and not trusted more
than a shard: it must belong to a tar of the same length and beginning, and point into it.
"""

import io
import json
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np

from packvit.data.shards.arrays import read_array
from packvit.data.shards.index import Index
from packvit.packing import derive_seed

SUFFIX = ".idx"
VERSION = 1
BEGINNING = 512  # bytes of the tar, its first header
LARGEST_SIDE = 2**24  # pixels; what is beyond is no image's


def beside(path: str) -> str:
    """The name of the index beside a shard; of a URL with the query of the shard."""
    if "://" not in path:
        return path + SUFFIX
    base, mark, query = path.partition("?")
    return f"{base}{SUFFIX}{mark}{query}"


def encode(index: Index, beginning: bytes, size: int) -> bytes:
    """The file beside a shard of `size` bytes that begins with `beginning`; the same for equal indices."""
    about = {
        "version": VERSION,
        "bytes": size,
        "beginning": _digest(beginning),
        "kinds": index.kinds,
        "problems": index.problems,
        "whole_bytes": index.whole_bytes,
    }
    assert index.sizes is not None
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "keys": np.frombuffer(index.keys, np.uint8),
        "key_ends": index.key_ends,
        "kind": index.kind,
        "firsts": index.firsts,
        "spans": index.spans,
        "sizes": index.sizes,
    }
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), file.getvalue())  # without the time of day
    return whole.getvalue()


def decode(data: bytes, beginning: bytes, size: int) -> Index | None:
    """The index that `encode` wrote; None if it belongs to another shard, or is damaged."""
    try:
        arrays = _unpack(data)
        about = json.loads(arrays["about"].tobytes())
        if (about["version"], about["bytes"], about["beginning"]) != (VERSION, size, _digest(beginning)):
            return None
        index = Index(
            keys=arrays["keys"].tobytes(),
            kinds=tuple(tuple(map(str, kind)) for kind in about["kinds"]),
            problems=tuple(map(str, about["problems"])),
            whole_bytes=about["whole_bytes"],
            **{name: arrays[name] for name in ("key_ends", "kind", "firsts", "spans", "sizes")},
        )
        return index if _fits(index, size) else None
    except Exception:  # damage raises nearly anything
        return None


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        for info in file.infolist():
            # Nothing may grow beyond the bytes that came.
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed")
        return {name.removesuffix(".npy"): read_array(file.read(name)) for name in file.namelist()}


def _fits(index: Index, size: int) -> bool:
    """Whether all that an index points to is there."""
    number, fields = len(index.key_ends), len(index.spans)
    counts = np.array([len(kind) for kind in index.kinds], np.int64)
    columns: list[tuple[Any, str, tuple[int, ...]]] = [
        (index.key_ends, "int64", (number,)),
        (index.kind, "int32", (number,)),
        (index.firsts, "int64", (number,)),
        (index.spans, "int64", (fields, 2)),
        (index.sizes, "int32", (number, 2)),
    ]
    if any(column.dtype != kind or column.shape != shape for column, kind, shape in columns):
        return False
    if number == 0:
        return True
    ends = np.diff(index.key_ends, prepend=0)
    kinds_fit = index.kind.min() >= 0 and index.kind.max() < len(counts)
    return bool(
        kinds_fit
        and ends.min() >= 0
        and index.key_ends[-1] == len(index.keys)
        and index.firsts.min() >= 0
        and (index.firsts + counts[index.kind]).max() <= fields
        and index.spans.min(initial=0) >= 0
        and (index.spans[:, 0] <= size - index.spans[:, 1]).all()
        and index.sizes is not None
        and index.sizes.min() >= 0
        and index.sizes.max() <= LARGEST_SIDE
        and index.keys.decode() is not None
    )


def with_sizes(index: Index, sizes: list[tuple[int, int]]) -> Index:
    """The index with the native height and width of each sample's image; (0, 0) if there is none."""
    return replace(index, sizes=np.array(sizes, np.int32).reshape(-1, 2))


def _digest(beginning: bytes) -> str:
    return f"{derive_seed(beginning[:BEGINNING].hex()):032x}"
