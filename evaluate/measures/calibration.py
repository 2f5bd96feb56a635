"""Whether a model's confidence can be trusted: likelihood, calibration error, and temperature.

A softmax model's probabilities are softmax(z) of its logits z. A sigmoid model, trained with a binary
cross-entropy of each class, has a probability sigmoid(z) for each class, independent of the others. All sums
are float64, and take some rows at a time, so that many classes need little memory.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from packvit.packing import derive_seed

LossKind = Literal["softmax", "sigmoid"]
ECE_BINS = 30
HIGHEST_TEMPERATURE = 100.0  # 1 / 100 is the lowest: answers that are all right want it to be 0
BLOCK = 2**22  # values in float64 at a time


def by_rows(function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Apply `function` to some rows of [N, C] and [N] at a time, with float64 logits, and join the
    results."""
    rows = max(1, BLOCK // max(1, logits.shape[1]))
    parts = zip(logits.split(rows), labels.split(rows), strict=True)
    return torch.cat([function(some.double(), own) for some, own in parts])


def probabilities(logits: Tensor, loss: LossKind) -> Tensor:
    """The model's probability of each class, [N, C]."""
    match loss:
        case "softmax":
            return logits.softmax(1)
        case "sigmoid":
            return logits.sigmoid()
        case _ as unknown:
            assert_never(unknown)


def negative_log_likelihood(
    logits: Tensor, labels: Tensor, loss: LossKind, temperature: float = 1.0
) -> Tensor:
    """-log of the probability of each image's label at a temperature: float64 [N].

    For a sigmoid model it is the sum over classes of the binary cross-entropies, its loss in training.

    Args:
        logits: [N, C]; they are divided by `temperature`.
        labels: int64 [N], 0..C-1.
    """
    return by_rows(lambda z, y: _likelihood(z / temperature, y, loss), logits, labels)


def _likelihood(logits: Tensor, labels: Tensor, loss: LossKind) -> Tensor:
    match loss:
        case "softmax":
            return F.cross_entropy(logits, labels, reduction="none")
        case "sigmoid":
            # -log sigmoid(-z) is softplus(z) for all classes but the label; there it is softplus(-z).
            return F.softplus(logits).sum(1) - logits.gather(1, labels[:, None])[:, 0]
        case _ as unknown:
            assert_never(unknown)


def brier_score(logits: Tensor, labels: Tensor, loss: LossKind) -> Tensor:
    """Sum over classes of (probability - (class is the label))^2 of each image: float64 [N].

    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950).
    """

    def score(z: Tensor, y: Tensor) -> Tensor:
        p = probabilities(z, loss)
        return p.square().sum(1) + 1 - 2 * p.gather(1, y[:, None])[:, 0]

    return by_rows(score, logits, labels)


def confidences(logits: Tensor, predictions: Tensor, loss: LossKind, temperature: float = 1.0) -> Tensor:
    """The probability of each image's predicted class at a temperature: float64 [N].

    For a sigmoid model it is the sigmoid of that class's logit.

    Args:
        logits: [N, C]; they are divided by `temperature`.
        predictions: int64 [N].
    """

    def of_prediction(z: Tensor, y: Tensor) -> Tensor:
        return probabilities(z / temperature, loss).gather(1, y[:, None])[:, 0]

    return by_rows(of_prediction, logits, predictions)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = ECE_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their share of images.

    The l1 form of Guo et al., arXiv 1706.04599, 2; NaN without images.

    Args:
        confidence: float [N] in [0, 1], probability of the predicted class.
        correct: bool [N].
    """
    if not len(confidence) or not confidence.isfinite().all():
        return math.nan
    index = (confidence * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.index_add_(0, index, confidence.double() - correct.double())
    return float(gaps.abs().sum() / len(confidence))


def fit_temperature(logits: Tensor, labels: Tensor, loss: LossKind) -> float:
    """The temperature, between 0.01 and 100, at which the mean negative log-likelihood is lowest.

    It is found by L-BFGS over its logarithm, in float64 (Guo et al., arXiv 1706.04599, 4.2). It is NaN
    without images and if logits are not finite.

    Args:
        logits: [N, C].
        labels: int64 [N], 0..C-1.
    """
    if not len(logits) or not logits.isfinite().all():
        return math.nan
    rows, limit = max(1, BLOCK // logits.shape[1]), math.log(HIGHEST_TEMPERATURE)
    parts = list(zip(logits.split(rows), labels.split(rows), strict=True))
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_temperature],
        max_iter=100,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def mean_likelihood() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for some, own in parts:
            factor = (-log_temperature.clamp(-limit, limit)).exp()
            value = _likelihood(some.double() * factor, own, loss).sum() / len(logits)
            value.backward()
            total += value.detach()
        return total

    optimizer.step(mean_likelihood)
    found = math.exp(log_temperature.item())
    return min(max(found, 1 / HIGHEST_TEMPERATURE), HIGHEST_TEMPERATURE)


def in_fit_half(keys: Sequence[str]) -> Tensor:
    """Whether each image belongs to the half that temperatures and thresholds are fitted on: bool [N].

    It depends on the key alone, so it is the same at all settings and in all commands.
    """
    return torch.tensor([derive_seed("half", key) % 2 == 0 for key in keys], dtype=torch.bool)
