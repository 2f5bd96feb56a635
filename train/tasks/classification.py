"""Classification from labels: one class for an image, or any number of them."""

from collections.abc import Mapping, Sequence
from typing import assert_never

import torch.nn.functional as F
from torch import Tensor

from packvit.data import EvalSet, LoadedBatch, Target
from packvit.evaluate import Accuracy, AveragePrecision, Evaluator, LossKind, MakeEvaluator
from packvit.models import PackedViT
from packvit.packing import Mixed, PackedBatch
from packvit.train.config import Config
from packvit.train.step.interface import StepBatches, TrainedModule
from packvit.train.step.step import Engine


class Classification:
    """Cross-entropy of the labels, softmax or sigmoid; see Task.

    Raises:
        ValueError: the model has no classes although labels or an evaluation need them, or the loss takes one
            label but images have several.
    """

    teachers: tuple[tuple[int, int], ...] = ()

    def __init__(self, config: Config) -> None:
        needs_head = config.distill.needs_labels or config.distill.logits_field or config.data.val_shards
        if config.model.num_classes == 0 and needs_head:
            raise ValueError(
                "model.num_classes=0 leaves nothing to learn from labels or to evaluate: set it to the "
                "number of classes"
            )
        several = config.data.multi_label
        if several and config.distill.needs_labels and config.train.loss == "softmax":
            raise ValueError("data.multi_label: softmax needs one class for an image; set train.loss=sigmoid")
        self.train = config.train
        self.model = config.model
        self.targets: Mapping[str, Target] = {"label": config.data.class_target(config.model.num_classes)}
        self.eval_targets: Mapping[str, Target] = self.targets
        self.several = several
        self.evaluators: Sequence[MakeEvaluator] = (self.measure,)

    def measure(self, images: EvalSet) -> Evaluator:
        """The evaluator of the trained model."""
        return (AveragePrecision if self.several else Accuracy)(self.train.loss)

    def initial(self) -> None:
        """See Task."""

    def build(self, model: PackedViT) -> TrainedModule:
        """See Task."""
        return Classifier(model)

    def prepare(self, engine: Engine) -> None:
        """See Task."""

    def flops(self, loaded: LoadedBatch, depth: int | None = None) -> int:
        """See Task."""
        # A backward pass costs two forward passes.
        return 3 * self.model.batch_flops(loaded.batch, depth)

    def backward(self, engine: Engine, step: StepBatches) -> Tensor:
        """See Task."""
        return engine.backward_by_image(step, lambda logits, loaded: self.loss(logits, loaded.batch))

    def loss(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """The loss of each image; float32 [N].

        Args:
            logits: [N, classes].
            batch: has the target `label`.
        """
        label = batch.targets["label"]
        assert isinstance(label, Tensor | Mixed)
        if isinstance(label, Mixed):
            label = mixed_labels(label, logits.shape[1])
        return classification_loss(logits, label, self.train.loss, self.train.label_smoothing)


class Classifier(TrainedModule):
    """A model with its own head."""

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits [N, classes]."""
        return self.model.outputs(batch).logits


def classification_loss(
    logits: Tensor, labels: Tensor, kind: LossKind, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each image; float32 [N].

    Args:
        logits: [N, classes], any floating type.
        labels: int64 [N], or [N, classes], one target in 0..1 for each.
        kind: `softmax`, or `sigmoid`: binary cross-entropy summed over classes (NaViT's setting).
        label_smoothing: share of the target that is spread evenly over the classes.
    """
    logits = logits.float()
    match kind:
        case "softmax":
            return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        case "sigmoid":
            wanted = dense_labels(labels, logits.shape[1])
            wanted = wanted * (1 - label_smoothing) + label_smoothing / logits.shape[1]
            return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)
        case _ as unknown:
            assert_never(unknown)


def mixed_labels(mixed: Mixed, classes: int) -> Tensor:
    """Targets of mixed images: share * own label + (1 - share) * the partner's; float32 [N, classes].

    Args:
        mixed: of int64 [N], or [N, classes].
    """
    share = mixed.share[:, None]
    return share * dense_labels(mixed.own, classes) + (1 - share) * dense_labels(mixed.partner, classes)


def dense_labels(labels: Tensor, classes: int) -> Tensor:
    """float32 [N, classes]: class indices become one-hot rows; rows are not changed."""
    return (F.one_hot(labels, classes) if labels.ndim == 1 else labels).float()
