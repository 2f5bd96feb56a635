"""The files of an evaluation: results.json and .csv, predictions, skipped.jsonl, a figure.

They are written to a hidden folder inside the evaluation's folder, and moved to their places when complete.
"""

import csv
import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from packvit.common.display import Display
from packvit.common.files import write_whole
from packvit.common.json_lines import finite
from packvit.data import EvalSet, redact
from packvit.evaluate.measures.calibration import in_fit_half
from packvit.evaluate.report import draw_results, measured
from packvit.evaluate.results import RESULTS, predictions_name
from packvit.evaluate.sweep.grid import UNFINISHED


class Predictions:
    """A .npz file that is written array by array, so that one setting's fit in memory; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._place: np.ndarray | None = None
        self._shared: set[str] = set()

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(
        self,
        images: EvalSet,
        setting: str,
        arrays: Mapping[str, np.ndarray],
        shared: Mapping[str, np.ndarray],
    ) -> None:
        """Add the values of each image at a setting, and of the set; see Summary in evaluate/sweep/grid.py.

        Raises:
            ValueError: other images could be used than at earlier settings.
        """
        place = arrays["place"]
        if self._place is None:
            self._place = place
            headers = [images.headers[i] for i in place]
            keys = [header.key for header in headers]
            self._write("keys", np.array(keys))
            paths = [redact(images.shards.paths[header.reference.shard]) for header in headers]
            self._write("shards", np.array(paths))
            self._write("labels", arrays["label"])
            self._write("fit_half", in_fit_half(keys).numpy())
        elif not np.array_equal(place, self._place):
            raise ValueError(f"{images.described} changed while they were evaluated: evaluate again")
        for name, array in shared.items():
            if name not in self._shared:
                self._write(name, array)
                self._shared.add(name)
        for name, array in arrays.items():
            if name not in ("place", "label"):
                self._write(f"{name}/{setting}", array)

    def _write(self, name: str, array: np.ndarray) -> None:
        with self._file.open(f"{name}.npy", "w", force_zip64=True) as file:
            npy.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


class ResultsFolder:
    """The hidden folder in which results become complete.

    Args:
        out: the evaluation's folder; created if needed.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.unfinished = out / UNFINISHED
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir(parents=True)

    def predictions(self, model: str | None, name: str) -> Predictions:
        """The file of a set's predictions.

        Args:
            model: its name if there are several, otherwise None.
            name: name of the set.
        """
        return Predictions(self.unfinished / predictions_name(model, name))

    def finish(
        self, results: Mapping[str, Any], skipped: Sequence[dict], display: Display, keep: bool
    ) -> list[dict[str, Any]]:
        """Write the other files, and replace those in `out`; returns the rows, without NaN.

        Args:
            results: the content of results.json.
            skipped: lines of skipped.jsonl.
            keep: rename a folder `out` that has results to the first free of `out`-1, -2, ..., instead of
                replacing its files.
        """
        rows: list[dict[str, Any]] = finite(results["rows"])
        text = json.dumps({**results, "rows": rows}, indent=1, allow_nan=False)
        write_whole(self.unfinished / RESULTS, text + "\n")
        write_whole(self.unfinished / "results.csv", csv_text(rows))
        lines = "".join(json.dumps(line) + "\n" for line in skipped)
        write_whole(self.unfinished / "skipped.jsonl", lines)
        if rows != results["rows"]:
            display.say("The model's outputs are not finite at some settings: results.json has null there")
        if skipped:
            display.say(f"{len(skipped)} images could not be used: {self.out / 'skipped.jsonl'} names them")
        display.draw(partial(draw_results, rows, self.unfinished / f"{measured(rows[0])[0]}.png"))
        for folder in self.out.glob(f"{UNFINISHED}-*"):
            shutil.rmtree(folder)  # what this and killed evaluations kept to go on with
        if kept := replace_results(self.out, keep):
            display.say(f"Kept the previous results as {kept}")
        return rows


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows without lists, as a table with commas; unknown values are empty."""
    lists = {name for row in rows for name, value in row.items() if isinstance(value, list)}
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in lists]
    file = io.StringIO()
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def replace_results(folder: Path, keep: bool) -> Path | None:
    """Move finished results to their places in `folder`; returns the new name of the folder if it was kept.

    Args:
        keep: see `ResultsFolder.finish`.
    """
    place = folder.absolute()  # a path such as `.` has no name
    kept = None
    if keep and (place / RESULTS).exists():
        kept = next(path for n in count(1) if not (path := place.with_name(f"{place.name}-{n}")).exists())
        place.rename(kept)
        place.mkdir()
    unfinished = (kept or place) / UNFINISHED
    for path in sorted(unfinished.iterdir()):
        os.replace(path, place / path.name)
    unfinished.rmdir()
    return kept and folder.with_name(kept.name) if folder.name else kept
