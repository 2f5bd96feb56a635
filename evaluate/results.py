"""An evaluation's folder, read: results.json, checked field by field, and the arrays of predictions."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packvit.common.json_fields import check_fields, check_list, read_object
from packvit.evaluate.measures import classification, retrieval
from packvit.evaluate.setting import Setting
from packvit.evaluate.sweep.cost import COSTS

Row = dict[str, Any]  # of results.json
RESULTS = "results.json"
MAIN = "main"  # the set that a model was evaluated on first
NONE = type(None)
NEEDED = {
    "set": (str,),
    "resolution": (int,),
    "patch_size": (int,),
    "tokens": (int, NONE),
    "protocol": (str,),
}
FIELDS: dict[str, tuple[type, ...]] = {
    "model": (dict, list, NONE),
    "device": (dict, NONE),
    "classes": (list, NONE),
    "rows": (list,),
    "corruptions": (list, NONE),
}
# What a row may leave out, or have as null.
USUAL = {"set": MAIN, "tokens": None, "protocol": "native"}
NUMBERS = (
    "images",
    "tokens_per_image",
    "gflops_per_image",
    *(name for name, kind in classification.VALUES.items() if kind != "list"),
    classification.AVERAGE_PRECISION,
    *retrieval.VALUES,
    "texts",
    *COSTS,
)
# By the first of them that there is, settings are compared.
MEASURES = (classification.ACCURACY, classification.AVERAGE_PRECISION, retrieval.FIRST)


@dataclass(frozen=True)
class ResultsFile:
    """What results.json holds.

    Args:
        path: of the file.
        model: path, hash, config and so on; a list of them where several models were evaluated; None if
            the file names no model.
        device: name and threads; empty if they are not known.
        classes: names, or None.
        rows: of every model, set and setting; each has `setting` and the fields of `NEEDED`.
        corruptions: see `packvit.evaluate.measures.robustness.summarise_corruptions`; empty without any.
    """

    path: Path
    model: dict[str, Any] | list[dict[str, Any]] | None
    device: dict[str, Any]
    classes: tuple[str, ...] | None
    rows: tuple[Row, ...]
    corruptions: tuple[dict[str, Any], ...] = ()


def read_results_file(path: Path) -> ResultsFile:
    """Read and check an evaluation's results.json.

    Args:
        path: the file, or the evaluation's folder.

    Raises:
        ValueError: it does not exist or is damaged; names the file and the field.
    """
    if path.is_dir():
        folder, path = path, path / RESULTS
        if not path.is_file():
            raise ValueError(f"{folder} is not an evaluation: it has no {RESULTS} (packvit eval makes one)")
    place = str(path)
    values = check_fields(
        {**dict.fromkeys(name for name, kinds in FIELDS.items() if NONE in kinds), **read_object(path)},
        FIELDS,
        place,
        others=True,
    )
    model, classes = values["model"], values["classes"]
    if isinstance(model, list):
        check_list(model, (dict,), f"{place}: model")
    return ResultsFile(
        path,
        model,
        values["device"] or {},
        None if classes is None else check_list(classes, (str,), f"{place}: classes"),
        tuple(_check_row(row, f"{place}: rows[{number}]") for number, row in enumerate(values["rows"])),
        _check_corruptions(values["corruptions"] or [], f"{place}: corruptions"),
    )


def _check_corruptions(values: list[Any], place: str) -> tuple[dict[str, Any], ...]:
    wanted = {"setting": (str,), "clean": (float, NONE), "corrupted": (float,)}
    for number, summary in enumerate(check_list(values, (dict,), place)):
        here = f"{place}[{number}]"
        check_fields(summary, wanted | {"kinds": (dict,), "strengths": (dict,)}, here, others=True)
        for name in ("kinds", "strengths"):
            check_fields(summary[name], dict.fromkeys(summary[name], (float,)), f"{here}: {name}")
        if not summary["kinds"] or not all(strength.isdecimal() for strength in summary["strengths"]):
            raise ValueError(f"{here}: there are no kinds, or a strength is not a number")
    return tuple(values)


def _check_row(values: Any, place: str) -> Row:
    """The row, with what it leaves out as it usually is."""
    check_fields(values, {}, place, others=True)
    row: Row = {**values, **{name: usual for name, usual in USUAL.items() if values.get(name) is None}}
    optional = {"stride": (int, NONE)} if "stride" in row else {}
    optional |= {name: (float, NONE) for name in NUMBERS if name in row}
    check_fields(row, NEEDED | optional, place, others=True)
    if row.get("class_accuracy") is not None:
        check_fields(row, {"class_accuracy": (list,)}, place, others=True)
        check_list(row["class_accuracy"], (float, NONE), f"{place}: class_accuracy")
    try:
        # Earlier versions wrote settings without names.
        row = {"setting": setting_of(row).name, **row}
        temperature = row.get("temperature")
        if temperature is not None and temperature <= 0:
            raise ValueError(f"temperature={temperature} must be positive")
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    check_fields(row, {"setting": (str,)}, place, others=True)
    return row


def setting_of(row: Row) -> Setting:
    """How images were shown.

    Raises:
        ValueError: the row's values make no setting.
    """
    resolution = row["resolution"] if row["tokens"] is None else None
    return Setting(row["patch_size"], resolution, row["tokens"], row["protocol"], row.get("stride"))


def predictions_name(model: str | None = None, name: str = MAIN) -> str:
    """The name of the file with the answers to a set of images.

    Args:
        model: its name where several were evaluated, else None.
        name: of the set.
    """
    parts = ["predictions", *([model] if model else []), *([name] if name != MAIN else [])]
    return f"{'-'.join(parts)}.npz"


def read_arrays(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The arrays of a predictions.npz by their names.

    Args:
        wanted: whether to read the array of a name.

    Raises:
        ValueError: the file does not exist or is damaged; names it.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if wanted(name)}
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: packvit eval writes it beside {RESULTS}") from error
    # NumPy's readers raise the last two for files that are no archive.
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def check_array(array: np.ndarray, kinds: str, length: int | None, place: str) -> np.ndarray:
    """An array [N] as it must be.

    Args:
        kinds: of its dtype, as NumPy abbreviates them.
        length: N; None allows any.
        place: where it stands, for the message.

    Raises:
        ValueError: it has another shape or type.
    """
    if array.ndim != 1 or array.dtype.kind not in kinds or length not in (None, len(array)):
        raise ValueError(f"{place} has the wrong shape or type: {array.shape} of {array.dtype}")
    return array
