"""What a run's folder tells prediction: settings that were measured, and names of classes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from packvit.data import is_remote
from packvit.evaluate.loss import find_run_config
from packvit.evaluate.plan.fields import check_fields, read_object
from packvit.evaluate.setting import Setting

NONE = type(None)


@dataclass(frozen=True)
class Row:
    """A setting that was measured.

    Args:
        accuracy: or average precision, where images have several labels; in [0, 1].
        tokens: mean over images.
        temperature: 1 where none was fitted.
    """

    setting: Setting
    accuracy: float
    tokens: float
    temperature: float

    def as_mapping(self) -> dict[str, float]:
        """What `favoured_patch_size` looks at."""
        return {
            "patch_size": self.setting.patch_size,
            "tokens_per_image": self.tokens,
            "accuracy": self.accuracy,
        }


@dataclass(frozen=True)
class Results:
    """An evaluation of one model.

    Args:
        path: of results.json.
        rows: settings on the main set.
        classes: names, where they are known.
    """

    path: Path
    rows: tuple[Row, ...] = ()
    classes: tuple[str, ...] | None = None


def read_results(folder: Path, weights: Callable[[], str]) -> Results | None:
    """The evaluation in a run's folder; None where there is none, or it is one of other weights.

    Args:
        weights: gives the hash of the model's weights; called only where the file names one.

    Raises:
        ValueError: results.json is damaged; names it and the field.
    """
    path = folder / "eval/results.json"
    if not path.is_file():
        return None
    values: dict[str, Any] = {"model": None, "classes": None, **read_object(path)}
    kinds = {"model": (dict, list, NONE), "classes": (list, NONE), "rows": (list,)}
    fields = check_fields(values, kinds, str(path), others=True)
    model = fields["model"]
    if isinstance(model, list) or (model and model.get("hash", None) != weights()):
        return None
    rows = [_read_row(row, f"{path}: rows[{i}]") for i, row in enumerate(fields["rows"])]
    classes = None if fields["classes"] is None else tuple(map(str, fields["classes"]))
    return Results(path, tuple(row for row in rows if row), classes)


def _read_row(values: Any, place: str) -> Row | None:
    """None for a row of another set, or one whose accuracy is not known."""
    optional = {"set": "main", "tokens": None, "protocol": "native", "temperature": None}
    optional |= {"accuracy": None, "average_precision": None}
    kinds = {
        "set": (str,),
        "resolution": (int,),
        "patch_size": (int,),
        "tokens": (int, NONE),
        "protocol": (str,),
        "accuracy": (float, NONE),
        "average_precision": (float, NONE),
        "tokens_per_image": (float,),
        "temperature": (float, NONE),
    }
    values = {**optional, **values} if isinstance(values, dict) else values
    row = check_fields(values, kinds, place, others=True)
    accuracy = row["average_precision"] if row["accuracy"] is None else row["accuracy"]
    if row["set"] != "main" or accuracy is None:
        return None
    resolution = row["resolution"] if row["tokens"] is None else None
    try:
        setting = Setting(row["patch_size"], resolution, row["tokens"], row["protocol"])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return Row(setting, accuracy, row["tokens_per_image"], row["temperature"] or 1.0)


def find_classes(folder: Path, number: int) -> tuple[str, ...] | None:
    """Names of a run's classes: classes.json in its folder, or beside the shards that it was trained on.

    Args:
        number: of classes; a file with another number of names is not this model's.
    """
    for place in (folder, *_shard_folders(folder)):
        try:
            names = json.loads((place / "classes.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(names, list) and len(names) == number:
            return tuple(map(str, names))
    return None


def _shard_folders(folder: Path) -> list[Path]:
    config = find_run_config(folder)
    try:
        shards = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["shards"] if config else None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []
    patterns = [str(pattern) for pattern in shards] if isinstance(shards, list) else []
    paths = [Path(pattern) for pattern in patterns if not is_remote(pattern)]
    return [path if path.is_dir() else path.parent for path in paths]
