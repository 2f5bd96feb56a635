"""Losses as sums over images, so that the step can divide by the global number of images.

The gradient of a step is the mean over all images of all ranks and accumulated batches; dividing
earlier, by the count of one batch, would weight images by how full their sequences happened to be.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, labels: Tensor, kind: str, label_smoothing: float = 0.0) -> Tensor:
    """Sum over images of the cross-entropy; float32 scalar.

    Args:
        logits: [N, classes], any floating type.
        labels: int64 [N].
        kind: `softmax`, or `sigmoid`: binary cross-entropy summed over classes (NaViT's setting).
        label_smoothing: share of the target that is spread evenly over the classes.
    """
    logits = logits.float()
    if kind == "softmax":
        return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their share of images.

    Args:
        confidence: float [N] in [0, 1], probability of the predicted class.
        correct: bool [N].
    """
    index = (confidence * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.index_add_(0, index, confidence.double() - correct.double())
    return float(gaps.abs().sum() / max(1, len(confidence)))
