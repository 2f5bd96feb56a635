"""One forward pass over a batch of images, and the answer for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from packvit.common.device import make_autocast
from packvit.evaluate.measures.calibration import LossKind
from packvit.evaluate.plan.plan import Stage
from packvit.evaluate.predict.heads import Head
from packvit.evaluate.predict.prediction import Prediction
from packvit.models import PackedViT
from packvit.packing import PackedBatch, PackedImage


@dataclass(frozen=True)
class Asked:
    """What answers contain.

    Args:
        head: reads the model's outputs.
        loss: softmax or sigmoid, which turns logits into scores.
        top: number of classes.
        features: whether there are features.
        precision: precision of matrix products.
        classes: names of the classes, or None.
    """

    head: Head
    loss: LossKind
    top: int
    features: bool
    precision: str
    classes: tuple[str, ...] | None


@torch.inference_mode()
def answer(vit: PackedViT, images: Sequence[PackedImage], stage: Stage, asked: Asked) -> list[Prediction]:
    """The model's answers for images, packed without padding, in their order.

    Args:
        vit: the model, in eval mode.
        images: at least one.
        stage: its setting was used to cut the images; its temperature divides the logits.
    """
    device = next(vit.parameters()).device
    batch = PackedBatch.build([images], sum(image.num_tokens for image in images)).to(device)
    # A context of its own, because it remembers what it replaces, and threads would mix that up.
    with make_autocast(asked.precision, device):
        outputs = vit.outputs(batch)
    logits, features = asked.head(outputs)
    features = features.float().cpu()
    labels = torch.zeros(len(images), 0, dtype=torch.int64)
    scores = torch.zeros(len(images), 0)
    if logits is not None:
        labels, scores = best_classes(logits.float(), stage, asked)
    is_finite = features.isfinite().all(1) & scores.isfinite().all(1)
    return [
        Prediction(
            tuple(own_labels),
            tuple(own_scores),
            asked.classes and tuple(asked.classes[label] for label in own_labels),
            own_features.numpy() if asked.features else None,
            image.num_tokens,
            stage.setting.name,
        )
        if good
        else Prediction(tokens=image.num_tokens, error="the model's answer is not finite")
        for own_labels, own_scores, own_features, image, good in zip(
            labels.tolist(), scores.tolist(), features, images, is_finite.tolist(), strict=True
        )
    ]


def best_classes(logits: Tensor, stage: Stage, asked: Asked) -> tuple[Tensor, Tensor]:
    """Labels int64 [N, k] and scores float32 [N, k] on the CPU, the best first; k is limited by the classes.

    Classes are ordered by their logits, because several scores may round to 1.
    """
    best, labels = logits.topk(min(asked.top, logits.shape[1]))
    if asked.loss == "sigmoid":
        scores = (best / stage.temperature).sigmoid()
    else:
        scores = (logits / stage.temperature).softmax(-1).gather(1, labels)
    return labels.cpu(), scores.cpu()


def is_unsure(prediction: Prediction, stage: Stage) -> bool:
    """Whether an image continues to the next stage: its best score is below the threshold."""
    if prediction.error is not None or stage.threshold is None:
        return False
    return prediction.scores[0] < stage.threshold
