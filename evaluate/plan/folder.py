"""An evaluation's folder, read: results.json and the predictions beside it."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from packvit.evaluate.plan.evaluated import Evaluated, Row
from packvit.evaluate.plan.fields import check_fields, check_list, read_object
from packvit.evaluate.plan.plan import NONE, PlannedModel
from packvit.evaluate.setting import Setting
from packvit.models import ViTConfig

# Without one of these a row says too little to be planned with.
NEEDED = ("accuracy", "accuracy_low", "accuracy_high", "temperature", "tokens_per_image", "gflops_per_image")
OPTIONAL = ("ece_calibrated", "latency_ms_p50", "latency_ms_p99", "latency_tokens", "images_per_s")
# Accuracies of results.json and of the predictions are the same quotient; this is far below one image.
SAME = 1e-6


def read_evaluation(folder: Path, model: str | None = None) -> Evaluated:
    """Read results.json and the predictions of its main set.

    Args:
        model: name of one model of an evaluation of several.

    Raises:
        ValueError: a file is missing or damaged, files do not belong together, or no setting can be planned
            with; names the file and the field.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no evaluation: it has no results.json (packvit eval makes one)")
    place = str(path)
    values = check_fields(
        read_object(path),
        {"model": (dict, list), "device": (dict,), "classes": (list, NONE), "rows": (list,)},
        place,
        others=True,
    )
    entry, rows = _one_model(values["model"], values["rows"], model, place)
    known = check_fields(
        entry, {"path": (str,), "hash": (str,), "config": (dict,)}, f"{place}: model", others=True
    )
    try:
        config = ViTConfig.from_dict(known["config"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: model.config: {error}") from error
    device = check_fields(
        values["device"], {"name": (str,), "threads": (int, NONE)}, f"{place}: device", others=True
    )
    threads = "" if device["threads"] is None else f", threads: {device['threads']}"
    classes = values["classes"]
    predictions = folder / ("predictions.npz" if model is None else f"predictions-{model}.npz")
    return _with_predictions(
        [_read_row(row, f"{place}: rows[{number}]") for number, row in rows],
        predictions,
        model=PlannedModel(known["path"], known["hash"]),
        config=config,
        device=device["name"] + threads,
        classes=None if classes is None else check_list(classes, (str,), f"{place}: classes"),
    )


def _one_model(
    entry: dict | list, rows: list, model: str | None, place: str
) -> tuple[dict[str, Any], list[tuple[int, Any]]]:
    """The entry and the rows of the main set, with their numbers in the file, of the model asked for."""
    for number, row in enumerate(rows):
        check_fields(row, {"set": (str,)}, f"{place}: rows[{number}]", others=True)
    numbered = [(number, row) for number, row in enumerate(rows) if row["set"] == "main"]
    if isinstance(entry, dict):
        if model is not None:
            raise ValueError(f"--model {model}: {place} is the evaluation of one model, which needs no name")
        return entry, numbered
    names = [check_fields(each, {"name": (str,)}, f"{place}: model", others=True)["name"] for each in entry]
    if model not in names:
        asked = f"no model is named {model!r}" if model else "it is the evaluation of several models"
        raise ValueError(f"{place}: {asked}: choose one with --model {' | '.join(names)}")
    return entry[names.index(model)], [(n, row) for n, row in numbered if row.get("model") == model]


def _read_row(values: dict[str, Any], place: str) -> tuple[str, Row | None]:
    """A setting's name and its row of results.json, None where a needed value is null."""
    numbers = dict.fromkeys(NEEDED + OPTIONAL, (float, NONE))
    shown = {"setting": (str,), "resolution": (int, NONE), "patch_size": (int,), "tokens": (int, NONE)}
    fields = check_fields(
        dict.fromkeys(OPTIONAL) | values,
        {**shown, **numbers, "protocol": (str,)},
        place,
        others=True,
    )
    tokens = fields["tokens"]
    try:
        resolution = fields["resolution"] if tokens is None else None
        setting = Setting(fields["patch_size"], resolution, tokens, fields["protocol"])
        if setting.name != fields["setting"]:
            raise ValueError(f"setting {fields['setting']!r} does not fit the other fields ({setting.name})")
        if fields["temperature"] is not None and fields["temperature"] <= 0:
            raise ValueError(f"temperature={fields['temperature']} must be positive")
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    temperature = fields["temperature"]
    if temperature is None or any(fields[name] is None for name in NEEDED):
        return setting.name, None
    return setting.name, Row(
        setting=setting,
        accuracy=fields["accuracy"],
        accuracy_low=fields["accuracy_low"],
        accuracy_high=fields["accuracy_high"],
        ece_calibrated=fields["ece_calibrated"],
        temperature=temperature,
        tokens=fields["tokens_per_image"],
        gflops=fields["gflops_per_image"],
        p50=fields["latency_ms_p50"],
        p99=fields["latency_ms_p99"],
        latency_tokens=fields["latency_tokens"],
        images_per_s=fields["images_per_s"],
    )


def _with_predictions(read: list[tuple[str, Row | None]], path: Path, **known: Any) -> Evaluated:
    """Join the rows with the answers to each image."""
    arrays = _Predictions(path)
    labels = arrays.get("labels", "i", None)
    fit_half = arrays.get("fit_half", "b", len(labels))
    usable = labels >= 0
    rows, left_out, gathered = [], [], []
    for name, row in read:
        if row is None:
            left_out.append(f"{name} is left out: results.json has null among its values")
            continue
        prediction = arrays.get(f"prediction/{name}", "i", len(labels))[usable]
        confidence = arrays.get(f"confidence/{name}", "f", len(labels))[usable].astype(np.float64)
        tokens = arrays.get(f"tokens/{name}", "i", len(labels))[usable]
        correct = prediction == labels[usable]
        if len(correct) == 0 or abs(float(correct.mean()) - row.accuracy) > SAME:
            raise ValueError(
                f"{path} does not belong to results.json beside it: the accuracy at {name} differs"
            )
        if not np.isfinite(confidence).all():
            left_out.append(f"{name} is left out: its confidences are not finite")
            continue
        rows.append(row)
        gathered.append((correct, confidence, tokens))
    if not rows:
        raise ValueError(f"{path.parent} has no setting to plan with: {'; '.join(left_out) or 'no rows'}")
    half = fit_half[usable]
    if half.all() or not half.any():
        raise ValueError(f"{path}: fit_half leaves one half without images: evaluate more images")
    correct, confidence, tokens = (np.stack(part) for part in zip(*gathered, strict=True))
    return Evaluated(
        **known,
        rows=tuple(rows),
        fit_half=half,
        correct=correct,
        confidence=confidence,
        tokens=tokens.astype(np.int64),
        left_out=tuple(left_out),
    )


class _Predictions:
    """The arrays of a predictions.npz; every way in which one may be wrong is one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as file:
                wanted = ("labels", "fit_half", "prediction/", "confidence/", "tokens/")
                self.arrays = {name: file[name] for name in file.files if name.startswith(wanted)}
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} is missing: packvit eval writes it beside results.json; evaluate again"
            ) from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error

    def get(self, name: str, kind: str, length: int | None) -> np.ndarray:
        """An array of this kind (of its dtype) and length."""
        array = self.arrays.get(name)
        if array is None:
            raise ValueError(f"{self.path} does not belong to results.json beside it: it has no {name!r}")
        if array.ndim != 1 or array.dtype.kind != kind or length not in (None, len(array)):
            raise ValueError(
                f"{self.path}: {name!r} has the wrong shape or type: {array.shape} of {array.dtype}"
            )
        return array
