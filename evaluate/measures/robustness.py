"""The effect of corruptions: results of the corrupted sets in a few numbers."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from packvit.data import Corruption, every_corruption
from packvit.evaluate.results import MAIN

Row = Mapping[str, Any]


def summarise_corruptions(rows: Sequence[Row], measure: str = "accuracy") -> list[dict[str, Any]]:
    """For each model and setting that has corrupted sets, the mean accuracy by kind and by strength.

    Args:
        rows: rows of results.json; those of corrupted sets have the corruption's name as `set`.
        measure: the value that is used as accuracy.

    Returns:
        {"model" if rows have it, "setting", "clean": accuracy without corruption or None, "corrupted": mean
        over kinds of their mean over strengths, "kinds": {kind: mean over strengths}, "strengths":
        {strength: mean over kinds}}.
    """
    summaries = []
    for (model, setting), found in _by_setting(rows, measure).items():
        accuracy = {corruption: row[measure] for corruption, row in found.items() if corruption}
        kinds = _means(accuracy, "kind")
        clean = found.get(None)
        summaries.append(
            ({} if model is None else {"model": model})
            | {
                "setting": setting,
                "clean": clean[measure] if clean else None,
                "corrupted": fmean(kinds.values()),
                "kinds": kinds,
                "strengths": _means(accuracy, "strength"),
            }
        )
    return summaries


def mean_corruption_error(rows: Sequence[Row], reference: Sequence[Row]) -> float:
    """The mean over kinds of the errors at all strengths over those of a reference model.

    It is the mCE of arXiv 1903.12261, section 4.1, whose reference is AlexNet.

    Args:
        rows: rows of results.json for one model at one setting; see `summarise_corruptions`.
        reference: the same for the other model.

    Raises:
        ValueError: they have different corruptions, or the reference makes no error.
    """
    errors, others = _errors(rows), _errors(reference)
    if errors.keys() != others.keys() or not errors:
        missing = sorted(corruption.name for corruption in errors.keys() ^ others.keys())
        raise ValueError(
            f"the reference is not of the same corruptions: {', '.join(missing) or 'there are none'}"
        )
    ratios = []
    for kind in {corruption.kind: None for corruption in errors}:
        own, other = (
            sum(error for corruption, error in found.items() if corruption.kind == kind)
            for found in (errors, others)
        )
        if other == 0:
            raise ValueError(f"the reference makes no error under {kind}, so errors have no ratio to it")
        ratios.append(own / other)
    return fmean(ratios)


def _by_setting(
    rows: Sequence[Row], measure: str = "accuracy"
) -> dict[tuple[str | None, str], dict[Corruption | None, Row]]:
    """By model and setting the rows by corruption, None the clean set; only with corruptions."""
    known: dict[str, Corruption | None] = {one.name: one for one in every_corruption()}
    known[MAIN] = None
    found: dict[tuple[str | None, str], dict[Corruption | None, Row]] = {}
    for row in rows:
        value = row.get(measure)
        if row["set"] in known and value is not None and math.isfinite(value):
            place = row.get("model"), row["setting"]
            found.setdefault(place, {})[known[row["set"]]] = row
    return {place: by_set for place, by_set in found.items() if by_set.keys() - {None}}


def _errors(rows: Sequence[Row]) -> dict[Corruption, float]:
    found = _by_setting(rows)
    if len(found) > 1:
        raise ValueError("the rows are of several models or settings")
    by_set = next(iter(found.values()), {})
    return {corruption: 1 - row["accuracy"] for corruption, row in by_set.items() if corruption}


def _means(accuracy: Mapping[Corruption, float], field: str) -> dict[str, float]:
    """By kind or by strength, the mean accuracy."""
    groups: dict[str, list[float]] = {}
    for corruption, value in accuracy.items():
        groups.setdefault(str(getattr(corruption, field)), []).append(value)
    return {name: fmean(values) for name, values in groups.items()}
