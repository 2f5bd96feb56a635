"""The parts of an evaluation's folder that a planner needs: rows and the predictions of the main set."""

from pathlib import Path
from typing import Any

import numpy as np

from packvit.common.json_fields import check_fields
from packvit.evaluate.measures.classification import ACCURACY
from packvit.evaluate.measures.retrieval import FIRST
from packvit.evaluate.plan.evaluated import Evaluated, Row
from packvit.evaluate.plan.plan import PlannedModel
from packvit.evaluate.results import (
    MAIN,
    NONE,
    ResultsFile,
    check_array,
    predictions_name,
    read_arrays,
    read_results_file,
    setting_of,
)
from packvit.models import ViTConfig

COSTS = ("tokens_per_image", "gflops_per_image")  # without them a row says too little to be planned with
# Accuracies of results.json and of the predictions are the same quotient; this is far below one image.
SAME = 1e-6


def read_evaluation(folder: Path, model: str | None = None) -> Evaluated:
    """Read results.json and the predictions of its main set.

    Args:
        model: name of the model, if several were evaluated together.

    Raises:
        ValueError: a file is missing or damaged, files do not belong together, or no setting can be used for
            planning; names the file and the field.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not an evaluation: it is not a folder")
    results = read_results_file(folder)
    place = str(results.path)
    entry, rows = _one_model(results, model)
    known = check_fields(
        entry, {"path": (str,), "hash": (str,), "config": (dict,)}, f"{place}: model", others=True
    )
    try:
        config = ViTConfig.from_dict(known["config"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: model.config: {error}") from error
    device = check_fields(
        results.device, {"name": (str,), "threads": (int, NONE)}, f"{place}: device", others=True
    )
    threads = "" if device["threads"] is None else f", threads: {device['threads']}"
    measure = FIRST if any(FIRST in row and ACCURACY not in row for _, row in rows) else ACCURACY
    return _with_predictions(
        [_read_row(row, measure, f"{place}: rows[{number}]") for number, row in rows],
        folder / predictions_name(model),
        measure=measure,
        corruptions={one["setting"]: one for one in results.corruptions if one.get("model") == model},
        model=PlannedModel(known["path"], known["hash"]),
        config=config,
        device=device["name"] + threads,
        classes=results.classes,
    )


def _one_model(results: ResultsFile, model: str | None) -> tuple[dict[str, Any], list[tuple[int, Any]]]:
    """The entry and the rows of the main set, with their numbers in the file, of the model asked for."""
    entry, place = results.model, str(results.path)
    numbered = [(number, row) for number, row in enumerate(results.rows) if row["set"] == MAIN]
    if entry is None:
        raise ValueError(f"{place}: field 'model' is missing")
    if isinstance(entry, dict):
        if model is not None:
            raise ValueError(f"--model {model}: {place} is the evaluation of one model, which needs no name")
        return entry, numbered
    names = [check_fields(each, {"name": (str,)}, f"{place}: model", others=True)["name"] for each in entry]
    if model not in names:
        asked = f"no model is named {model!r}" if model else "it is the evaluation of several models"
        raise ValueError(f"{place}: {asked}: choose one with --model {' | '.join(names)}")
    return entry[names.index(model)], [(n, row) for n, row in numbered if row.get("model") == model]


def _read_row(values: dict[str, Any], measure: str, place: str) -> tuple[str, Row | None]:
    """A setting's name and its row of results.json, None if a needed value is null."""
    names = [measure, f"{measure}_low", f"{measure}_high", *(["temperature"] if measure == ACCURACY else [])]
    needed = check_fields(values, dict.fromkeys((*names, *COSTS), (float, NONE)), place, others=True)
    setting = setting_of(values)
    if setting.name != values["setting"]:
        raise ValueError(
            f"{place}: setting {values['setting']!r} does not fit the other fields ({setting.name})"
        )
    if None in needed.values():
        return setting.name, None
    return setting.name, Row(
        setting=setting,
        accuracy=needed[measure],
        accuracy_low=needed[f"{measure}_low"],
        accuracy_high=needed[f"{measure}_high"],
        ece_calibrated=values.get("ece_calibrated"),
        temperature=needed.get("temperature", 1.0),
        tokens=needed["tokens_per_image"],
        gflops=needed["gflops_per_image"],
        p50=values.get("latency_ms_p50"),
        p99=values.get("latency_ms_p99"),
        latency_tokens=values.get("latency_tokens"),
        images_per_s=values.get("images_per_s"),
    )


def _with_predictions(read: list[tuple[str, Row | None]], path: Path, **known: Any) -> Evaluated:
    """Join the rows with the answers to each image."""
    arrays = _Predictions(path)
    labels = arrays.get("labels", "i", None)
    fit_half = arrays.get("fit_half", "b", len(labels))
    retrieval = known["measure"] == FIRST
    usable = np.ones(len(labels), bool) if retrieval else labels >= 0
    rows, left_out, gathered = [], [], []
    for name, row in read:
        if row is None:
            left_out.append(f"{name} is left out: results.json has null among its values")
            continue
        if row.setting.stride is not None:
            left_out.append(f"{name} is left out: plans have no strides")
            continue
        if retrieval:
            rank = arrays.get(f"image_to_text_rank/{name}", "i", len(labels))
            usable = rank >= 0  # the same at every setting
            correct, confidence = rank[usable] == 0, np.zeros(int(usable.sum()))
        else:
            correct = arrays.get(f"prediction/{name}", "i", len(labels))[usable] == labels[usable]
            confidence = arrays.get(f"confidence/{name}", "f", len(labels))[usable].astype(np.float64)
        tokens = arrays.get(f"tokens/{name}", "i", len(labels))[usable]
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
        raise ValueError(
            f"{path.parent} has no setting usable for planning: {'; '.join(left_out) or 'no rows'}"
        )
    half = fit_half[usable]
    if not retrieval and (half.all() or not half.any()):
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
    """The arrays of a predictions.npz that a plan needs, checked as they are taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        wanted = ("labels", "fit_half", "prediction/", "confidence/", "image_to_text_rank/", "tokens/")
        self.arrays = read_arrays(path, lambda name: name.startswith(wanted))

    def get(self, name: str, kind: str, length: int | None) -> np.ndarray:
        """An array of this kind (of its dtype) and length."""
        array = self.arrays.get(name)
        if array is None:
            raise ValueError(f"{self.path} does not belong to results.json beside it: it has no {name!r}")
        return check_array(array, kind, length, f"{self.path}: {name!r}")
