"""What an evaluation left in its folder, and which of its settings stand out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from packvit.common.json_lines import read_json_lines
from packvit.evaluate.plan.compare import pareto
from packvit.evaluate.results import (
    MAIN,
    MEASURES,
    Row,
    check_array,
    predictions_name,
    read_arrays,
    read_results_file,
)

LONGEST_NAME = 60  # signs of a class's name
CLOSE = 0.01  # how much less accurate a cheaper setting may be to be worth naming


@dataclass(frozen=True)
class Results:
    """results.json and skipped.jsonl.

    Args:
        folder: where they are.
        models: path, hash, config and so on of each model.
        device: name and threads.
        classes: names, or None.
        rows: of every model, set and setting.
        skipped: {"shard", "key", "reason"} of each image that could not be used.
        corruptions: what corruptions cost at each setting; see `packvit.evaluate.results.ResultsFile`.
    """

    folder: Path
    models: Sequence[dict[str, Any]]
    device: dict[str, Any]
    classes: Sequence[str] | None
    rows: Sequence[Row]
    skipped: Sequence[dict[str, Any]]
    corruptions: Sequence[dict[str, Any]] = ()

    @cached_property
    def measure(self) -> str:
        """By which settings are compared."""
        return measure_of(self.main)

    @cached_property
    def main(self) -> list[Row]:
        """Rows of the main set."""
        return [row for row in self.rows if row["set"] == MAIN]

    @cached_property
    def names(self) -> list[str]:
        """Of the models, in the order of the rows; one empty name where there is one model."""
        return list(dict.fromkeys(model_name(row) for row in self.rows)) or [""]

    @cached_property
    def best(self) -> Row | None:
        """The row with the highest value on the main set, the cheapest of several; None without values."""
        return best_of(self.main, self.measure)

    @cached_property
    def frugal(self) -> Row | None:
        """The row of the cheapest setting of any model that loses less than `CLOSE` to the best."""
        return frugal_of(self.main, self.measure)

    def model(self, name: str) -> dict[str, Any]:
        """What results.json says of the model of a name: by its name, else by its place among them."""
        for model in self.models:
            if model.get("name") == name:
                return model
        place = self.names.index(name)
        return self.models[place] if place < len(self.models) else {}

    def class_name(self, number: int) -> str:
        """Of a class, shortened; its number where it has no name."""
        if self.classes is None or not 0 <= number < len(self.classes):
            return f"class {number}"
        return shorten(str(self.classes[number]), LONGEST_NAME)

    def predictions(self, row: Row) -> "Predictions | None":
        """What the model of a row said to each image of the main set; None if it was not kept.

        Raises:
            ValueError: the file is damaged, or lacks what it must hold; names it.
        """
        path = self._predictions_file(row)
        return read_predictions(path, row["setting"]) if path.is_file() else None

    def retrieved(self, row: Row) -> "Retrieved | None":
        """What was found for each image of the main set at a row's setting; None if it was not kept.

        Raises:
            ValueError: the file is damaged, or lacks what it must hold; names it.
        """
        path = self._predictions_file(row)
        return read_retrieved(path, row["setting"]) if path.is_file() else None

    def _predictions_file(self, row: Row) -> Path:
        return self.folder / predictions_name(model_name(row) if len(self.names) > 1 else None)


@dataclass(frozen=True)
class Retrieved:
    """Which of M captions stand first for N images.

    Args:
        keys, shards: str [N], names of the images.
        rank: int64 [N], captions before the first of the image's own; -1 without one.
        first: int64 [N], the caption that stands first.
        captions: str [M].
        owner: int64 [M], the image of each caption.
    """

    keys: np.ndarray
    shards: np.ndarray
    rank: np.ndarray
    first: np.ndarray
    captions: np.ndarray
    owner: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """What a model said to N images at one setting.

    Args:
        keys, shards: str [N], names of the images.
        labels: int64 [N]; -1 = unknown.
        fit_half: bool [N], the half that the temperature was fitted on.
        prediction: int64 [N], classes.
        confidence: float32 [N], of the predicted class, after temperature.
        logits: float32 [N, C], or None if they were not kept.
    """

    keys: np.ndarray
    shards: np.ndarray
    labels: np.ndarray
    fit_half: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    logits: np.ndarray | None

    @property
    def known(self) -> np.ndarray:
        """bool [N], whether the label is known."""
        return self.labels >= 0


def read_results(folder: Path) -> Results:
    """Read an evaluation's folder.

    Raises:
        ValueError: it has no results, or they are damaged; names the file and the field.
    """
    file = read_results_file(folder)
    models = file.model if isinstance(file.model, list) else [file.model or {}]
    skipped = folder / "skipped.jsonl"
    lines = read_json_lines(skipped) if skipped.is_file() else []
    return Results(folder, models, file.device, file.classes, file.rows, lines, file.corruptions)


def read_predictions(path: Path, setting: str) -> Predictions | None:
    """See `Results.predictions`; None if the file does not hold the setting."""
    kinds = {f"prediction/{setting}": "i", f"confidence/{setting}": "f"}
    kinds |= {"keys": "U", "shards": "U", "labels": "i", "fit_half": "b"}
    arrays = read_arrays(path, {*kinds, f"logits/{setting}"}.__contains__)
    if f"prediction/{setting}" not in arrays:
        return None
    prediction, confidence, keys, shards, labels, fit_half = take_arrays(arrays, kinds, path)
    logits = arrays.get(f"logits/{setting}")
    classes = None if logits is None or logits.ndim != 2 else logits.shape[1]
    if logits is not None and (classes is None or len(logits) != len(labels)):
        raise ValueError(f"{path}: 'logits/{setting}' has the wrong shape: {logits.shape}")
    if len(prediction) and (prediction.min() < 0 or (classes is not None and prediction.max() >= classes)):
        raise ValueError(f"{path}: 'prediction/{setting}' has classes that the model does not have")
    return Predictions(keys, shards, labels, fit_half, prediction, confidence, logits)


def read_retrieved(path: Path, setting: str) -> Retrieved | None:
    """See `Results.retrieved`; None if the file does not hold the setting."""
    rank, first = f"image_to_text_rank/{setting}", f"retrieved/{setting}"
    of_images = {"keys": "U", "shards": "U", rank: "i", first: "i"}
    of_texts = {"captions": "U", "caption_image": "i"}
    arrays = read_arrays(path, {*of_images, *of_texts}.__contains__)
    if rank not in arrays:
        return None
    found = Retrieved(*take_arrays(arrays, of_images, path), *take_arrays(arrays, of_texts, path))
    limits = (found.first, found.captions, first), (found.owner, found.keys, "caption_image")
    for numbers, among, name in limits:
        if not ((numbers >= 0) & (numbers < len(among))).all():
            raise ValueError(f"{path}: {name!r} has numbers that are not below {len(among)}")
    return found


def take_arrays(arrays: Mapping[str, np.ndarray], kinds: Mapping[str, str], path: Path) -> list[np.ndarray]:
    """Arrays [N] in the order of `kinds`.

    Args:
        arrays: of a predictions.npz.
        kinds: by name, what the dtypes must be, see `check_array`; the first one's length is N.
        path: of the file, for messages.

    Raises:
        ValueError: one is missing, or is not as it must be; names the file and the array.
    """
    for name, kind in kinds.items():
        if name not in arrays:
            raise ValueError(f"{path} lacks {name!r}: evaluate the model again")
        check_array(arrays[name], kind, len(arrays[next(iter(kinds))]), f"{path}: {name!r}")
    return [arrays[name] for name in kinds]


def shorten(text: str, signs: int) -> str:
    """The text, cut off where it has more signs."""
    return text if len(text) <= signs else text[: signs - 1] + "…"


def model_name(row: Row) -> str:
    """The model that a row is of; empty if there is only one."""
    return str(row.get("model") or "")


def full_name(row: Row) -> str:
    """Of a row's setting, with its model where there are several."""
    name = model_name(row)
    return f"{name} at {row['setting']}" if name else str(row["setting"])


def measure_of(rows: Iterable[Row]) -> str:
    """The first of `MEASURES` that any row has; the first of all without any."""
    known = {name for row in rows for name in MEASURES if row.get(name) is not None}
    return next((name for name in MEASURES if name in known), MEASURES[0])


def cost(row: Row) -> float:
    """GFLOPs an image, or its tokens where those are unknown."""
    gflops = row.get("gflops_per_image")
    return gflops if gflops is not None else row.get("tokens_per_image") or 0.0


def best_of(rows: Iterable[Row], measure: str) -> Row | None:
    """The row with the highest value, the cheapest of several; None if no row has one."""
    known = [row for row in rows if row.get(measure) is not None]
    return max(known, key=lambda row: (row[measure], -cost(row)), default=None)


def frugal_of(rows: Iterable[Row], measure: str) -> Row | None:
    """The cheapest row that loses at most `CLOSE` to the best, the best of several; None without values."""
    known = [row for row in rows if row.get(measure) is not None]
    enough = max((row[measure] for row in known), default=0.0) - CLOSE
    close = [row for row in known if row[measure] >= enough - 1e-9]  # differences of floats are not exact
    return min(close, key=lambda row: (cost(row), -row[measure]), default=None)


def front_of(rows: Iterable[Row], measure: str, price: Callable[[Row], float | None]) -> list[Row]:
    """The rows that no other beats or equals at the same price or less, cheapest first: the Pareto front."""
    known = [(row, cost) for row in rows if row.get(measure) is not None and (cost := price(row)) is not None]
    return [known[place][0] for place in pareto([c for _, c in known], [row[measure] for row, _ in known])]
