"""Evaluators: measures of a model's answers for a set of images, as names and values.

A task lists its evaluators. The code that runs a model over the images asks each of them what to keep of each
batch, and at the end for the values of everything that was kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from packvit.data import EvalSet
from packvit.evaluate.measures.accuracy import wilson_interval
from packvit.evaluate.measures.average_precision import mean_average_precision
from packvit.evaluate.measures.calibration import (
    LossKind,
    confidences,
    expected_calibration_error,
    in_fit_half,
)
from packvit.evaluate.measures.classification import (
    ACCURACY,
    AVERAGE_PRECISION,
    VALUES,
    mean,
    measure_setting,
)
from packvit.evaluate.measures.labels import LabelMap, judge
from packvit.evaluate.sweep.store import Columns
from packvit.models import Outputs
from packvit.packing import PackedBatch


class Evaluator(Protocol):
    """Two pure functions: of a batch's images, and of all images of a set at one setting.

    All ranks make it together, when the model is ready to be evaluated. Work that ranks must do together,
    such as gathering a head that FSDP has sharded, belongs there.

    Attributes:
        name: identifies the result of `collect`; a killed evaluation resumes only with evaluators of the same
            names.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    def collect(self, outputs: Outputs, batch: PackedBatch) -> dict[str, Tensor]:
        """What to keep of each image, by name: [n, ...] on any device.

        Called by any rank, any number of times, in inference mode.

        Args:
            outputs, batch: the model's outputs for n images, both on its device.
        """
        ...

    def summarise(self, columns: Columns) -> Iterator[tuple[str, Any]]:
        """(name, value) over all images; called by the main rank alone.

        A number, a list of numbers or None is a value of the setting's row in results.json; NaN becomes null.
        A tensor [N, ...] has a value for each image and goes to predictions.npz, under its name and the
        setting's. A NumPy array belongs to the set, is the same at every setting, and goes there once, under
        its name. The very first value of a task is a share, the higher the better; reports compare settings
        by it.

        Args:
            columns: the results of `collect` for all N images, in the order of the set, and `place`, int64
                [N], the place of each in it; on the CPU.
        """
        ...


MakeEvaluator = Callable[[EvalSet], Evaluator]  # of the set that it will measure a model on


class Scores(Protocol):
    """Logits of images that do not come from the model's own head."""

    @property
    def name(self) -> str:
        """A name that distinguishes them from logits for other classes or models."""
        ...

    @property
    def num_classes(self) -> int:
        """The number of logits of an image."""
        ...

    def __call__(self, outputs: Outputs) -> Tensor:
        """Float32 [n, classes], on the device of the model's answers to n images."""
        ...


UNKNOWN: dict[str, float | None] = dict.fromkeys(VALUES)  # in a row where there is nothing to measure


@dataclass(frozen=True)
class Answers:
    """A classifier's logits for each image, from which the evaluators below compute their values.

    Args:
        loss: the loss that the model was trained with; determines how logits become probabilities.
        logits, features: whether predictions.npz holds each image's logits and features.
        scores: computes the logits; None: the model's own.
    """

    loss: LossKind = "softmax"
    logits: bool = False
    features: bool = False
    scores: Scores | None = None
    measure: ClassVar[str] = "accuracy"

    @property
    def name(self) -> str:
        """See Evaluator; the same columns serve either loss."""
        scores = f" of {self.scores.name}" if self.scores else ""
        return f"{self.measure}{scores}{' and features' if self.features else ''}"

    def collect(self, outputs: Outputs, batch: PackedBatch) -> dict[str, Tensor]:
        """See Evaluator."""
        columns = {"logits": outputs.logits.float() if self.scores is None else self.scores(outputs)}
        return columns | ({"features": outputs.features.float()} if self.features else {})

    def kept(self, columns: Columns) -> Iterator[tuple[str, Tensor]]:
        """The values of each image that predictions.npz holds on request."""
        if self.logits:
            yield "logits", columns["logits"]
        if self.features:
            yield "features", columns["features"]


class Accuracy(Answers):
    """Classification with one class of an image: accuracy, calibration, and each image's prediction."""

    def collect(self, outputs: Outputs, batch: PackedBatch) -> dict[str, Tensor]:
        """See Evaluator; the batch has labels."""
        assert batch.labels is not None
        own = {"label": batch.labels, "fit_half": in_fit_half(batch.keys)}
        return super().collect(outputs, batch) | own

    def summarise(self, columns: Columns) -> Iterator[tuple[str, Any]]:
        """See Evaluator."""
        measured = measure_setting(columns["logits"], columns["label"], columns["fit_half"], self.loss)
        yield from measured.values.items()
        yield "prediction", measured.prediction
        yield "confidence", measured.confidence
        yield from self.kept(columns)


@dataclass(frozen=True)
class MappedAccuracy(Accuracy):
    """Accuracy on a set with its own labels: the model chooses among the classes that correspond to them.

    Predictions are labels of the set, and so are the classes of accuracy by class.

    Args:
        label_map: the model's classes for each label of the set. Every image's label has some.
    """

    label_map: LabelMap = field(kw_only=True)

    def summarise(self, columns: Columns) -> Iterator[tuple[str, Any]]:
        """See Evaluator."""
        found = self.label_map.apply(columns["logits"], columns["label"])
        measured = measure_setting(found.logits, found.labels, columns["fit_half"][found.kept], self.loss)
        labels = self.label_map.columns
        by_column = measured.values.pop("class_accuracy")
        assert isinstance(by_column, list)
        by_label = dict(zip(labels, by_column, strict=True))
        yield from measured.values.items()
        yield "class_accuracy", [by_label.get(label) for label in range(len(self.label_map.classes))]
        yield "prediction", torch.tensor(labels)[measured.prediction]
        yield "confidence", measured.confidence
        yield from self.kept(columns)


@dataclass(frozen=True)
class SetAccuracy(Answers):
    """Accuracy if images have several right answers, as in ReaL (arXiv 2006.07159).

    Values that need a single label are None.

    Args:
        answers: the right classes of each image, by its place in the set; every image has some.
    """

    answers: Sequence[frozenset[int]] = field(kw_only=True)

    def summarise(self, columns: Columns) -> Iterator[tuple[str, Any]]:
        """See Evaluator."""
        logits = columns["logits"]
        prediction = logits.argmax(1)
        correct, kept = judge(prediction, [self.answers[place] for place in columns["place"].tolist()])
        confidence = confidences(logits, prediction, self.loss)
        low, high = wilson_interval(int(correct.sum()), len(correct))
        known = {
            ACCURACY: mean(correct),
            "accuracy_low": low,
            "accuracy_high": high,
            "ece": expected_calibration_error(confidence[kept], correct),
        }
        yield from (UNKNOWN | known).items()
        yield "prediction", prediction
        yield "confidence", confidence.float()
        yield from self.kept(columns)


class AveragePrecision(Answers):
    """Classification with any number of classes of an image: how well scores rank the images of each class.

    Values that need a single label are None. The scores are a softmax model's probabilities or a sigmoid
    model's logits, which rank images in the same order as its probabilities.
    """

    measure: ClassVar[str] = "average precision"

    def collect(self, outputs: Outputs, batch: PackedBatch) -> dict[str, Tensor]:
        """See Evaluator; the batch has a vector over the classes for each image."""
        assert batch.labels is not None
        return super().collect(outputs, batch) | {"targets": batch.labels}

    def summarise(self, columns: Columns) -> Iterator[tuple[str, Any]]:
        """See Evaluator."""
        logits = columns["logits"]
        # The logarithm ranks as the probability does, and does not underflow.
        scores = logits.log_softmax(1) if self.loss == "softmax" else logits
        yield AVERAGE_PRECISION, mean_average_precision(scores, columns["targets"])
        yield from UNKNOWN.items()
        prediction = logits.argmax(1)
        yield "prediction", prediction
        yield "confidence", confidences(logits, prediction, self.loss).float()
        yield from self.kept(columns)
