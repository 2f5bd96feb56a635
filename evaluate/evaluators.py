"""Evaluators: what a model's answers to a set of images are worth, as names and values.

A task lists its evaluators; whoever runs a model over the images hands every batch to each of them.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from packvit.common.ranks import Ranks
from packvit.models import Outputs
from packvit.packing import PackedBatch

ECE_BINS = 15


class Evaluator(Protocol):
    """Gathers what it needs of each batch of this rank, and then says what came out."""

    def add(self, outputs: Outputs, batch: PackedBatch) -> None:
        """Take the model's answers to a batch; both on the model's device.

        Ranks have different numbers of batches: what they must do together, such as running a head that
        FSDP has sharded, has its place in `results`.
        """
        ...

    def results(self, ranks: Ranks) -> Iterator[tuple[str, float]]:
        """(name, value) over the images of all ranks, the same on all of them; every rank calls it.

        A task's first value of all is a share, the higher the better; reports compare budgets by it.
        """
        ...


MakeEvaluator = Callable[[], Evaluator]


class Accuracy:
    """Classification: `accuracy`, and `ece`, the expected calibration error over ECE_BINS bins."""

    def __init__(self) -> None:
        self.confidence: list[Tensor] = [torch.zeros(0)]
        self.correct: list[Tensor] = [torch.zeros(0, dtype=torch.bool)]

    def add(self, outputs: Outputs, batch: PackedBatch) -> None:
        """See Evaluator; the batch has labels."""
        assert batch.labels is not None
        confidence, prediction = outputs.logits.float().softmax(-1).cpu().max(-1)
        self.confidence.append(confidence)
        self.correct.append(prediction == batch.labels.cpu())

    def results(self, ranks: Ranks) -> Iterator[tuple[str, float]]:
        """See Evaluator."""
        parts = ranks.gather((self.confidence, self.correct))
        confidence = torch.cat([tensor for part in parts for tensor in part[0]])
        correct = torch.cat([tensor for part in parts for tensor in part[1]])
        yield "accuracy", float(correct.double().mean())
        yield "ece", expected_calibration_error(confidence, correct)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = ECE_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their share of images.

    Args:
        confidence: float [N] in [0, 1], probability of the predicted class.
        correct: bool [N].
    """
    index = (confidence * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.index_add_(0, index, confidence.double() - correct.double())
    return float(gaps.abs().sum() / max(1, len(confidence)))
