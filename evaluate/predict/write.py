"""Predictions as lines of JSON, CSV or Parquet.

A file appears under its name when it is complete. Until then, and after an interruption, a readable partial
file is beside it under a hidden name.
"""

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from packvit.common.files import check_writable, sync
from packvit.common.optional import need
from packvit.evaluate.predict.prediction import Prediction

SUFFIXES = (".jsonl", ".csv", ".parquet")
ROWS = 4096  # of a Parquet row group
SHOWN = 40  # characters of an image's name in a table


class Writer(Protocol):
    """Takes one prediction after the other."""

    def write(self, image: str, prediction: Prediction) -> None:
        """Write the answer for an image."""
        ...

    def close(self) -> None:
        """Finish the file; safe to call after a failure."""
        ...


def as_line(image: str, prediction: Prediction) -> dict[str, Any]:
    """{"image", "labels", "scores"}, with "names" and "features" if there are any; or {"image", "error"}."""
    if prediction.error is not None:
        return {"image": image, "error": prediction.error}
    line: dict[str, Any] = {
        "image": image,
        "labels": list(prediction.labels),
        "scores": list(prediction.scores),
    }
    if prediction.names is not None:
        line["names"] = list(prediction.names)
    if prediction.features is not None:
        line["features"] = prediction.features.tolist()
    return line


def as_row(image: str, prediction: Prediction) -> dict[str, Any]:
    """The same in flat columns: image, label_1, score_1, name_1, label_2, ..., feature_0, ..., error."""
    row: dict[str, Any] = {"image": image}
    for kind, values in (
        ("label", prediction.labels),
        ("score", prediction.scores),
        ("name", prediction.names or ()),
    ):
        row |= {f"{kind}_{place}": value for place, value in enumerate(values, 1)}
    if prediction.features is not None:
        row |= {f"feature_{place}": value for place, value in enumerate(prediction.features.tolist())}
    return row if prediction.error is None else {"image": image, "error": prediction.error}


def columns(top: int, names: bool, features: int) -> list[str]:
    """Columns of `as_row`.

    Args:
        top: number of classes in an answer.
        names: whether classes have names.
        features: number of features; 0: none.
    """
    kinds = ("label", "score", "name") if names else ("label", "score")
    best = [f"{kind}_{place}" for place in range(1, top + 1) for kind in kinds]
    return ["image", *best, *(f"feature_{place}" for place in range(features)), "error"]


class JsonWriter:
    """A JSON object a line."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, image: str, prediction: Prediction) -> None:
        """See Writer."""
        self._file.write(json.dumps(as_line(image, prediction), allow_nan=False) + "\n")

    def close(self) -> None:
        """See Writer."""
        self._file.flush()


class CsvWriter:
    """Flat columns, with a line of their names."""

    def __init__(self, file: TextIO, names: list[str]) -> None:
        self._file = file
        self._rows = csv.DictWriter(file, names)
        self._rows.writeheader()

    def write(self, image: str, prediction: Prediction) -> None:
        """See Writer."""
        self._rows.writerow(as_row(image, prediction))

    def close(self) -> None:
        """See Writer."""
        self._file.flush()


class ParquetWriter:
    """Flat columns: labels int64, scores and features float32, texts.

    Raises:
        ImportError: pyarrow is not installed.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self._arrow, parquet = need_parquet()
        number, text = self._arrow.float32(), self._arrow.string()
        kinds = {"label": self._arrow.int64(), "score": number, "feature": number}
        self._schema = self._arrow.schema([(n, kinds.get(n.partition("_")[0], text)) for n in names])
        self._rows: list[dict[str, Any]] = []
        self._file = parquet.ParquetWriter(path, self._schema)

    def write(self, image: str, prediction: Prediction) -> None:
        """See Writer."""
        self._rows.append(as_row(printable(image), prediction))
        if len(self._rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        self._file.write_table(self._arrow.Table.from_pylist(rows, self._schema))

    def close(self) -> None:
        """See Writer."""
        if self._rows:
            self._flush()
        self._file.close()


class TableWriter:
    """For a person at a terminal: an image a line, with its classes and their scores."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, image: str, prediction: Prediction) -> None:
        """See Writer."""
        if prediction.error is not None:
            answer = f"error: {prediction.error}"
        else:
            names = prediction.names or tuple(map(str, prediction.labels))
            best = [f"{score:6.1%} {name}" for score, name in zip(prediction.scores, names, strict=True)]
            answer = "".join(f"{text:<18}" for text in best).rstrip()
        self._file.write(f"{printable(image):<{SHOWN}} {printable(answer)}\n")

    def close(self) -> None:
        """See Writer."""
        self._file.flush()


def printable(text: str) -> str:
    """The text, with an escape for each byte of a file's name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def need_parquet() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet.

    Raises:
        ImportError: they are not installed.
    """
    purpose = "writing Parquet needs pyarrow"
    return need("pyarrow", "parquet", purpose), need("pyarrow.parquet", "parquet", purpose)


def check_kind(name: str) -> None:
    """Refuse a file with an unknown suffix.

    Raises:
        ValueError: the suffix is not one of `SUFFIXES`.
    """
    if not name.endswith(SUFFIXES):
        raise ValueError(f"--out {name} must end in one of {', '.join(SUFFIXES)}")


def check_out(path: Path) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        ValueError: it has an unknown suffix, it is a folder, or its folder cannot be written to.
        ImportError: it is a .parquet file, and pyarrow is not installed.
    """
    check_kind(path.name)
    if path.is_dir():
        raise ValueError(f"--out {path} cannot be written to: it is a folder")
    check_writable(path.parent)
    if path.suffix == ".parquet":
        need_parquet()


@contextmanager
def open_out(path: Path, names: list[str]) -> Iterator[Writer]:
    """A writer to a file, which replaces an existing one when everything is written.

    After a failure the answers so far are left in the file that `partial_name` names.

    Args:
        names: columns of flat formats.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    if path.suffix == ".parquet":
        writer: Writer = ParquetWriter(partial, names)
        try:
            yield writer
        finally:
            writer.close()
    else:
        # Names of files that are no UTF-8 keep their bytes.
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = JsonWriter(file) if path.suffix == ".jsonl" else CsvWriter(file, names)
            yield writer
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def partial_name(path: Path) -> Path:
    """The path of a file until it is complete."""
    return path.with_name(f".{path.name}.partial")
