"""Evaluators: what a model's answers to a set of images are worth, as names and values.

A task lists its evaluators. Whoever runs a model over the images asks each of them what to keep of a batch,
and at the end what all that was kept says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from packvit.evaluate.measures.calibration import LossKind, in_fit_half
from packvit.evaluate.measures.classification import measure_setting
from packvit.evaluate.store import Columns
from packvit.models import Outputs
from packvit.packing import PackedBatch


class Evaluator(Protocol):
    """Two pure functions: of a batch's images, and of all images of a set at one setting.

    All ranks make it together, when the model is as it will be evaluated: what ranks must do together, such
    as gathering a head that FSDP has sharded, has its place there.

    Attributes:
        name: says what `collect` gives; a killed evaluation goes on only with evaluators of the same names.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    def collect(self, outputs: Outputs, batch: PackedBatch) -> dict[str, Tensor]:
        """What to keep of each image, by name: [n, ...] on any device.

        Called by any rank, any number of times, in inference mode.

        Args:
            outputs, batch: the model's answers to n images, both on its device.
        """
        ...

    def summarise(self, columns: Columns) -> Iterator[tuple[str, Any]]:
        """(name, value) over all images; called by the main rank alone.

        A number, a list of numbers or None is a value of the setting's row in results.json; NaN becomes null.
        A tensor [N, ...] says something of each image and goes to predictions.npz, under its name and the
        setting's. A task's first value of all is a share, the higher the better; reports compare settings by
        it.

        Args:
            columns: what `collect` gave for all N images, in the order of the set; on the CPU.
        """
        ...


MakeEvaluator = Callable[[], Evaluator]


@dataclass(frozen=True)
class Accuracy:
    """Classification with one class of an image: accuracy, calibration, and each image's prediction.

    Args:
        loss: that the model was trained with; decides what its logits say of probabilities.
        logits, features: whether predictions.npz holds each image's.
    """

    loss: LossKind = "softmax"
    logits: bool = False
    features: bool = False

    @property
    def name(self) -> str:
        """See Evaluator; the same columns serve either loss."""
        return f"accuracy{' and features' if self.features else ''}"

    def collect(self, outputs: Outputs, batch: PackedBatch) -> dict[str, Tensor]:
        """See Evaluator; the batch has labels."""
        assert batch.labels is not None
        columns = {
            "logits": outputs.logits.float(),
            "label": batch.labels,
            "fit_half": in_fit_half(batch.keys),
        }
        return columns | ({"features": outputs.features.float()} if self.features else {})

    def summarise(self, columns: Columns) -> Iterator[tuple[str, Any]]:
        """See Evaluator."""
        measured = measure_setting(columns["logits"], columns["label"], columns["fit_half"], self.loss)
        yield from measured.values.items()
        yield "prediction", measured.prediction
        yield "confidence", measured.confidence
        if self.logits:
            yield "logits", columns["logits"]
        if self.features:
            yield "features", columns["features"]
