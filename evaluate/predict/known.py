"""What prediction learns from a run's folder: measured settings, and names of classes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packvit.common.json_fields import check_fields
from packvit.data import is_remote, read_class_names, shard_folders
from packvit.evaluate.loss import run_field
from packvit.evaluate.results import MAIN, MEASURES, RESULTS, read_results_file, setting_of
from packvit.evaluate.setting import Setting

# Why the best setting is taken, by the measure that it is the best by.
WHY: dict[str, str] = dict(
    zip(
        MEASURES,
        ("the most accurate", "with the highest average precision", "with the highest recall@1"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Row:
    """A setting that was measured.

    Args:
        accuracy: accuracy, or the measure used in its place; in [0, 1].
        measure: which of MEASURES it is.
        tokens: mean over images.
        temperature: 1 if none was fitted.
    """

    setting: Setting
    accuracy: float
    measure: str
    tokens: float
    temperature: float

    def as_mapping(self) -> dict[str, float]:
        """The values that `favoured_patch_size` needs."""
        return {
            "patch_size": self.setting.patch_size,
            "tokens_per_image": self.tokens,
            "accuracy": self.accuracy,
        }


@dataclass(frozen=True)
class Results:
    """An evaluation of one model.

    Args:
        path: path of results.json.
        rows: settings on the main set.
        classes: names of the classes, if they are known.
    """

    path: Path
    rows: tuple[Row, ...] = ()
    classes: tuple[str, ...] | None = None


def read_results(folder: Path, weights: Callable[[], str]) -> Results | None:
    """The evaluation in a run's folder; None if there is none, or it is of other weights.

    Args:
        weights: returns the hash of the model's weights; called only if the file names one.

    Raises:
        ValueError: results.json is damaged; names it and the field.
    """
    if not (folder / "eval" / RESULTS).is_file():
        return None
    file = read_results_file(folder / "eval")
    model = file.model
    if isinstance(model, list) or (model and model.get("hash") != weights()):
        return None
    rows = [_read_row(row, f"{file.path}: rows[{i}]") for i, row in enumerate(file.rows)]
    return Results(file.path, tuple(row for row in rows if row), file.classes)


def _read_row(row: dict[str, Any], place: str) -> Row | None:
    """None for a row of another set, or one without a measure."""
    measure = next((name for name in MEASURES if row.get(name) is not None), None)
    if row["set"] != MAIN or measure is None:
        return None
    check_fields(row, {measure: (float,)}, place, others=True)
    tokens = check_fields(row, {"tokens_per_image": (float,)}, place, others=True)["tokens_per_image"]
    return Row(setting_of(row), row[measure], measure, tokens, row.get("temperature") or 1.0)


def find_classes(folder: Path, number: int) -> tuple[str, ...] | None:
    """Names of a run's classes: classes.json in its folder, or beside the shards that it was trained on.

    Args:
        number: number of classes; a file with another number of names belongs to another model.
    """
    for place in (str(folder), *_shard_folders(folder)):
        names = read_class_names(place)
        if names is not None and len(names) == number:
            return tuple(names)
    return None


def _shard_folders(folder: Path) -> list[str]:
    """Those on this machine: nothing is asked of a server that whoever made the run has named."""
    try:
        shards = run_field(folder, "data", "shards")
    except (OSError, ValueError):
        return []
    found = shard_folders(map(str, shards)) if isinstance(shards, list) else []
    return [place for place in found if not is_remote(place)]
