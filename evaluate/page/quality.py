"""Where one setting is right and how sure it is: calibration, confusion, classes."""

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

import numpy as np

from packvit.common.markup import el
from packvit.evaluate.page.blocks import (
    Cell,
    amount,
    figure,
    figures,
    heat_map,
    legend,
    note,
    number,
    percent,
    section,
    sortable,
)
from packvit.evaluate.page.charts import Axis, Chart, short
from packvit.evaluate.page.folder import Predictions, Results, Row, full_name, model_name, shorten

BINS = 15  # of the reliability diagram
MATRIX_CLASSES, WRITTEN_CLASSES = 50, 20  # up to so many there is a matrix, and numbers in its cells
MOST_PAIRS = 15  # of confused classes
MOST_CLASSES = 1000  # in the table of classes
MATRIX_NAME, SHORT_NAME = 20, 3  # signs of a name beside the matrix: at most, and so few that it stays level


def calibration_section(results: Results, row: Row, predictions: Predictions | None) -> Element | None:
    """How often the model is right when it is so sure, and the calibration error of every setting."""
    charts = []
    if predictions is not None and (diagram := _reliability(results, row, predictions)) is not None:
        charts.append(diagram)
    if (errors := _errors(results)) is not None:
        charts.append(errors)
    if not charts:
        return None
    text = (
        "A temperature is fitted on one half of the images; what is called calibrated is measured on the "
        "other. ECE is the mean distance between confidence and accuracy (l1, 30 bins)."
    )
    names = legend([(0, "hollow", "before temperature"), (1, "", "after temperature")])
    return section("calibration", "Calibration", note(text), names, figures(*charts))


def raw_confidence(
    predictions: Predictions, loss: str | None, temperature: float | None
) -> np.ndarray | None:
    """Confidence of the predicted class before temperature: float64 [N]; None if nothing tells it.

    A softmax needs the logits; a sigmoid can be taken back to them.
    """
    if predictions.logits is not None:
        logits, taken = predictions.logits, predictions.prediction[:, None]
        if loss == "sigmoid":
            return _sigmoid(np.take_along_axis(logits, taken, 1)[:, 0].astype(np.float64))
        with np.errstate(invalid="ignore"):  # of infinities
            powers = np.exp(logits - logits.max(1, keepdims=True))
            return np.take_along_axis(powers, taken, 1)[:, 0] / powers.sum(1, dtype=np.float64)
    if loss == "sigmoid" and temperature:
        sure = np.clip(predictions.confidence.astype(np.float64), 1e-9, 1 - 1e-9)
        return _sigmoid(temperature * np.log(sure / (1 - sure)))
    return None


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, float]]:
    """(mean confidence, accuracy, share of the images) of each of `BINS` equal intervals that has any.

    Args:
        confidence: float [N], 0..1; values that are not finite are left out.
        right: bool [N].
    """
    finite = np.isfinite(confidence)
    confidence, right = confidence[finite], right[finite]
    place = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    found = [place == number for number in range(BINS)]
    return [
        (float(confidence[inside].mean()), float(right[inside].mean()), float(inside.mean()))
        for inside in found
        if inside.any()
    ]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * values))


def _reliability(results: Results, row: Row, predictions: Predictions) -> Element | None:
    use = predictions.known & ~predictions.fit_half
    if not use.any():
        return None
    right = (predictions.prediction == predictions.labels)[use]
    raw = raw_confidence(predictions, results.model(model_name(row)).get("loss"), row.get("temperature"))
    chart = Chart(
        f"Accuracy over confidence at {full_name(row)}, {amount(len(right), 'image')}",
        Axis("confidence, %", 0, 1, percent=True),
        Axis("accuracy, %", 0, 1, percent=True),
    )
    chart.line([(0, 0), (1, 1)], "front")
    after = reliability(predictions.confidence[use].astype(np.float64), right)
    for sure, _, share in after:
        left = min(int(sure * BINS), BINS - 1) / BINS
        chart.bar(left, left + 1 / BINS, share)
    for series, kind, when, points in (
        (0, "hollow", "before", [] if raw is None else reliability(raw[use], right)),
        (1, "", "after", after),
    ):
        if len(points) > 1:
            chart.line([point[:2] for point in points], f"thin s{series}")
        for sure, accuracy, share in points:
            text = f"{percent(share)} of the images, {percent(sure)} sure: {percent(accuracy)} right ({when})"
            chart.point(sure, accuracy, series, text, kind)
    temperature = row.get("temperature")
    fitted = "" if temperature is None else f" Temperature {short(temperature)}."
    missing = "" if raw is not None else " Without logits only confidences after temperature are known."
    caption = f"At {full_name(row)}; bars are shares of the images.{fitted}{missing}"
    return figure("Is it right as often as it is sure?", chart, caption)


def _errors(results: Results) -> Element | None:
    """Calibration error before and after temperature over tokens."""
    fields = ((0, "hollow", "ece"), (1, "", "ece_calibrated"))
    rows = [row for row in results.main if (row.get("tokens_per_image") or 0) > 0]
    values = [row[field] for row in rows for _, _, field in fields if row.get(field) is not None]
    if not values:
        return None
    chart = Chart(
        f"Calibration error over tokens, {amount(len(rows), 'setting')}",
        Axis.around("tokens per image", [row["tokens_per_image"] for row in rows], log=True),
        Axis.around("ECE, %", [0, *values], percent=True),
    )
    for row in rows:
        x, before, after = row["tokens_per_image"], row.get("ece"), row.get("ece_calibrated")
        if before is not None and after is not None:
            chart.line([(x, before), (x, after)], "thin s0")
    for series, kind, field in fields:
        for row in rows:
            if row.get(field) is not None:
                text = f"{full_name(row)}: {field} {percent(row[field], 2)}"
                chart.point(row["tokens_per_image"], row[field], series, text, kind)
    return figure("Calibration error of every setting", chart)


def confusion_section(results: Results, row: Row, predictions: Predictions | None) -> Element | None:
    """Which classes are taken for which; None without labels."""
    if predictions is None or not predictions.known.any():
        return None
    labels, taken = (values[predictions.known] for values in (predictions.labels, predictions.prediction))
    classes = 1 + int(max(labels.max(), taken.max()))
    places, counts = np.unique(labels * classes + taken, return_counts=True)
    found = {
        divmod(place, classes): count for place, count in zip(places.tolist(), counts.tolist(), strict=True)
    }
    numbers = np.bincount(labels, minlength=classes).tolist()
    wrong = sorted((pair for pair in found if pair[0] != pair[1]), key=lambda pair: -found[pair])[:MOST_PAIRS]
    lines = []
    for label, other in wrong:
        share = found[label, other] / numbers[label]
        cells = number(found[label, other]), number(share, percent(share), share)
        lines.append((el("td", results.class_name(label)), el("td", results.class_name(other)), *cells))
    heads = "class", "taken for", "images", "share of the class"
    body: list[Element] = [sortable("The most confused classes", heads, lines)] if len(wrong) else []
    if classes <= MATRIX_CLASSES:
        body.append(_matrix(found, numbers, [results.class_name(c) for c in range(classes)]))
    text = (
        f"{full_name(row)} is wrong about {int((labels != taken).sum()):,} of {amount(len(labels), 'image')}."
    )
    return section("confusion", "What is taken for what", note(text), el("div", *body, class_="beside"))


def _matrix(found: Mapping[tuple[int, int], int], numbers: Sequence[int], names: Sequence[str]) -> Element:
    """Rows are classes, columns predictions; errors are coloured by their share of the class."""
    written = len(names) <= WRITTEN_CLASSES
    largest = max((n / numbers[label] for (label, other), n in found.items() if label != other), default=1.0)
    cells = {}
    for (label, other), count in found.items():
        share = count / numbers[label]
        hint = f"{names[label]} taken for {names[other]}: {amount(count, 'image')}, {percent(share)}"
        colour = 0.0 if label == other else share / largest
        cells[label, other] = Cell(colour, str(count) if written else "", hint, label == other)
    caption = "Images by class (rows) and prediction (columns)"
    kinds = ["matrix"]
    kinds += [] if written else ["tiny"]
    kinds += ["upright"] if max(map(len, names)) > SHORT_NAME or not written else []
    sides = [shorten(name, MATRIX_NAME) for name in names]
    return heat_map(caption, "", (sides, sides), cells, " ".join(kinds))


def class_section(results: Results, row: Row, predictions: Predictions | None) -> Element | None:
    """Accuracy of each class at the best setting and at the cheap one; None if it was not measured."""
    found = row.get("class_accuracy")
    if not found or all(value is None for value in found):
        return None
    frugal = results.frugal if results.frugal is not row else None
    other = (frugal or {}).get("class_accuracy") or []
    other = other if len(other) == len(found) else [None] * len(found)  # of a model with other classes
    images = [None] * len(found)
    if predictions is not None and predictions.known.any():
        images = np.bincount(predictions.labels[predictions.known], minlength=len(found)).tolist()
    known = [number for number, value in enumerate(found) if value is not None]
    order = sorted(known, key=lambda number: found[number])
    shown = order[:MOST_CLASSES]
    heads = ["class", "images", full_name(row), *([full_name(frugal), "difference"] if frugal else [])]
    name = results.class_name
    rows = (_class_cells(name(c), images[c], found[c], other[c], frugal is not None) for c in shown)
    values = sorted(found[c] for c in known)
    text = (
        f"{amount(len(known), 'class', 'classes')}: from {percent(values[0])} to "
        f"{percent(values[-1])}, the median is {percent(float(np.median(values)))}."
    )
    if len(shown) < len(known):
        text += f" The table has the {len(shown):,} lowest; results.json has all."
    return section(
        "classes", "Accuracy of each class", note(text), sortable("Accuracy by class", heads, rows)
    )


def _class_cells(
    name: str, images: int | None, accuracy: float, other: float | None, several: bool
) -> list[Element]:
    cells = [el("td", name), number(images), number(accuracy, percent(accuracy), accuracy)]
    if not several:
        return cells
    change = None if other is None else other - accuracy
    cells.append(number(other, percent(other), other))
    return [*cells, number(change, None if change is None else f"{100 * change:+.1f}")]
