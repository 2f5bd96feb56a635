"""Native sizes of many images: from the headers in shards, or from a file of sizes.

No pixel is decoded. Sizes are int32 arrays, 8 bytes an image, so millions fit anywhere. Invalid sizes are
counted in `Sizes.bad` and named with their places in `Sizes.examples`.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from packvit.common.optional import need
from packvit.data import BadSample, BadShard, FetchConfig, Shard
from packvit.data.samples.decode import read_native_size
from packvit.data.shards.fetch import FETCH

SHOWN = 20  # bad sizes that are named
BLOCK = 65_536  # rows read at once
LONGEST_CELL = 40  # characters; more are no number
LARGEST = 2**24  # pixels of a side; what is beyond is no image's
HEIGHTS, WIDTHS = ("height", "h"), ("width", "w")


@dataclass
class Sizes:
    """Sizes, and the invalid ones.

    Args:
        values: int32 [N, 2], native heights and widths.
        bad: number of images or rows without a usable size.
        examples: the first `SHOWN` of them, with place and value.
        notes: other problems of the source, such as a truncated shard.
    """

    values: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int32))
    bad: int = 0
    examples: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note_bad(self, sentences: Iterable[str], count: int) -> None:
        """Count bad sizes, and keep descriptions of the first ones."""
        self.bad += count
        self.examples += islice(sentences, max(0, SHOWN - len(self.examples)))

    @staticmethod
    def join(parts: Iterable["Sizes"]) -> "Sizes":
        """All parts, in order."""
        whole, values = Sizes(), [Sizes().values]
        for part in parts:
            values.append(part.values)
            whole.note_bad(part.examples, part.bad)
            whole.notes += part.notes
        whole.values = np.concatenate(values)
        return whole

    def require_some(self, source: str) -> "Sizes":
        """Itself.

        Raises:
            ValueError: there is no usable size at all.
        """
        if len(self.values):
            return self
        if not self.bad:
            raise ValueError(f"{source} holds no sizes{''.join(f': {note}' for note in self.notes[:1])}")
        raise ValueError(f"{source}: none of {self.bad} sizes can be used, the first: {self.examples[0]}")


def shard_sizes(path: str, part: int = 0, parts: int = 1, fetch: FetchConfig = FETCH) -> Sizes:
    """Sizes in one shard, or in the `part`-th of `parts` equal shares of it; reads headers only.

    A shard that cannot be read at all is one bad size, with its reason.
    """
    sizes = Sizes()
    try:
        shard = Shard.look(path, fetch)
    except BadShard as error:
        if part == 0:
            sizes.note_bad([str(error)], 1)
        return sizes
    if part == 0:
        sizes.notes += [f"{path}: {problem}" for problem in shard.problems]
    found: list[tuple[int, int]] = []
    for member in range(len(shard) * part // parts, len(shard) * (part + 1) // parts):
        try:
            found.append(read_native_size(shard, member))
        except (BadSample, BadShard) as error:
            sizes.note_bad([str(error)], 1)
    sizes.values = np.array(found, np.int32).reshape(-1, 2)
    return sizes


def read_sizes_file(path: Path, limit: int | None = None) -> Sizes:
    """Sizes from .csv, .parquet or .npy.

    csv and parquet name their columns height and width, or h and w, in any order and beside others; a csv
    without such a first line holds height, then width. npy holds [N, 2]: height, width. Rows are counted
    from 1, lines of a csv as an editor counts them; empty lines are no rows.

    Args:
        path: the file.
        limit: rows read at most.

    Raises:
        ValueError: no such file or kind of file, no such columns, or not one usable size; one sentence.
        ImportError: parquet without pyarrow.
    """
    readers: dict[str, Callable[[Path], Iterator[tuple[Sequence[int], Any, Any]]]] = {
        ".csv": _read_csv,
        ".npy": _read_npy,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is not a file of sizes: it must end in one of {', '.join(readers)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    sizes, values = Sizes(), [Sizes().values]
    left = limit
    for rows, heights, widths in reader(path):
        count = len(rows) if left is None else min(left, len(rows))
        values.append(_check(path, rows[:count], heights[:count], widths[:count], sizes))
        if left is not None and (left := left - count) == 0:
            break
    sizes.values = np.concatenate(values)
    return sizes.require_some(str(path))


def _check(path: Path, rows: Sequence[int], heights: Any, widths: Any, sizes: Sizes) -> np.ndarray:
    """int32 [n, 2] of the good rows; the others are noted."""
    try:
        pairs = np.stack([np.asarray(heights).astype(np.float64), np.asarray(widths).astype(np.float64)], 1)
    except (ValueError, TypeError):
        pairs = np.array([(_number(h), _number(w)) for h, w in zip(heights, widths, strict=True)])
    # A comparison with nan is false, so what is missing or text is bad, too.
    good = ((pairs >= 1) & (pairs <= LARGEST) & (pairs == np.floor(pairs))).all(1)
    bad = np.flatnonzero(~good).tolist()
    named = (f"{path}:{rows[i]}: height {_show(heights[i])}, width {_show(widths[i])}" for i in bad)
    sizes.note_bad(named, len(bad))
    return pairs[good].astype(np.int32)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _show(value: Any) -> str:
    if value is None or value == "":
        return "missing"
    return repr(value[:LONGEST_CELL]) if isinstance(value, str) else f"{value}"


def _read_csv(path: Path) -> Iterator[tuple[list[int], list[str], list[str]]]:
    rows: list[int] = []
    heights: list[str] = []
    widths: list[str] = []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
        delimiter = max(",;\t", key=first.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        at: tuple[int, int] | None = None
        try:
            for row in reader:
                if not row:
                    continue
                if at is None:
                    if _is_header(row):
                        at = _columns(row, path)
                        continue
                    at = 0, 1
                rows.append(reader.line_num)
                heights.append(row[at[0]].strip()[:LONGEST_CELL] if at[0] < len(row) else "")
                widths.append(row[at[1]].strip()[:LONGEST_CELL] if at[1] < len(row) else "")
                if len(rows) == BLOCK:
                    yield rows, heights, widths
                    rows, heights, widths = [], [], []
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: it is not CSV ({error})") from error
    yield rows, heights, widths


def _is_header(row: Sequence[str]) -> bool:
    """A line is a header if it names a column, or holds nothing but text."""
    names = [cell.strip().lower() for cell in row]
    return any(name in HEIGHTS + WIDTHS for name in names) or all(
        name and np.isnan(_number(name)) for name in names
    )


def _columns(names: Sequence[str], path: Path) -> tuple[int, int]:
    """Places of the height's and the width's column."""
    lower = [name.strip().lower() for name in names]
    heights = [lower.index(name) for name in HEIGHTS if name in lower]
    widths = [lower.index(name) for name in WIDTHS if name in lower]
    if not heights or not widths:
        raise ValueError(f"{path} needs columns height and width (or h and w), it has {', '.join(names)}")
    return heights[0], widths[0]


def _read_npy(path: Path) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a readable npy file of numbers ({error})") from error
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iufUS":
        raise ValueError(f"{path} must hold numbers [N, 2], not {array.dtype} {list(array.shape)}")
    for start in range(0, len(array), BLOCK):
        block = array[start : start + BLOCK]
        yield range(start + 1, start + 1 + len(block)), block[:, 0], block[:, 1]


def _read_parquet(path: Path) -> Iterator[tuple[range, list, list]]:
    parquet = need("pyarrow.parquet", "parquet", "parquet files need pyarrow")
    pyarrow = need("pyarrow", "parquet", "parquet files need pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            chosen = [names[place] for place in _columns(names, path)]
            start = 1
            for batch in file.iter_batches(BLOCK, columns=chosen):
                heights, widths = (
                    batch.column(batch.schema.names.index(name)).to_pylist() for name in chosen
                )
                yield range(start, start + len(heights)), heights, widths
                start += len(heights)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a readable parquet file ({error})") from error
