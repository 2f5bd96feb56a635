"""Measures of a classifier's answers at one setting: the values of a row of results.json."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from packvit.evaluate.measures.accuracy import class_accuracy, label_ranks, wilson_interval
from packvit.evaluate.measures.calibration import (
    LossKind,
    brier_score,
    confidences,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)

ACCURACY, AVERAGE_PRECISION = "accuracy", "average_precision"  # where an image has one class, or any number
# A classifier's values in the order of a row, and what each is; a share is in [0, 1].
VALUES: dict[str, Literal["share", "number", "list"]] = {
    ACCURACY: "share",
    "accuracy_low": "share",
    "accuracy_high": "share",
    "top5": "share",
    "nll": "number",
    "brier": "number",
    "ece": "share",
    "temperature": "number",
    "nll_calibrated": "number",
    "ece_calibrated": "share",
    "class_accuracy": "list",
}
TOP = 5


class Measured(NamedTuple):
    """The result of `measure_setting`.

    values: by name; None or NaN if there is nothing to measure.
    prediction: int64 [N], the class with the highest logit.
    confidence: float32 [N], of the predicted class after temperature.
    """

    values: dict[str, float | list[float | None] | None]
    prediction: Tensor
    confidence: Tensor


def measure_setting(logits: Tensor, labels: Tensor, fit_half: Tensor, loss: LossKind) -> Measured:
    """Measure the answers to the images of a set.

    The temperature is fitted on one half of the images, and its effect on likelihood and calibration is
    measured on the other. It divides all logits of an image, so predictions do not change.

    Args:
        logits: float [N, C].
        labels: int64 [N]; images with -1, an unknown label, are not counted.
        fit_half: bool [N], the images that the temperature is fitted on.
    """
    prediction = logits.argmax(1)
    known = labels >= 0
    z, y, predicted, half = logits[known], labels[known], prediction[known], fit_half[known]
    ranks = label_ranks(z, y)
    correct = ranks == 0
    low, high = wilson_interval(int(correct.sum()), len(y))
    temperature = fit_temperature(z[half], y[half], loss)
    other = ~half
    calibrated = confidences(z[other], predicted[other], loss, temperature)
    values: dict[str, float | list[float | None] | None] = {
        "accuracy": mean(correct),
        "accuracy_low": low,
        "accuracy_high": high,
        "top5": mean(ranks < TOP) if logits.shape[1] > TOP else None,
        "nll": mean(negative_log_likelihood(z, y, loss)),
        "brier": mean(brier_score(z, y, loss)),
        "ece": expected_calibration_error(confidences(z, predicted, loss), correct),
        "temperature": temperature,
        "nll_calibrated": mean(negative_log_likelihood(z[other], y[other], loss, temperature)),
        "ece_calibrated": expected_calibration_error(calibrated, correct[other]),
        "class_accuracy": class_accuracy(correct, y, logits.shape[1]),
    }
    # Without a temperature, as where too few images have labels, confidence is what the model says.
    known_temperature = temperature if math.isfinite(temperature) else 1.0
    confidence = confidences(logits, prediction, loss, known_temperature)
    return Measured(values, prediction, confidence.float())


def mean(values: Tensor) -> float:
    """The mean in float64; NaN of nothing."""
    return float(values.to(torch.float64).mean())
