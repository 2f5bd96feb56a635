"""Losses image by image, so that the step can divide their sum by the global number of images.

The gradient of a step is the mean over all images of all ranks and accumulated batches; dividing
earlier, by the count of one batch, would weight images by how full their sequences happened to be.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, labels: Tensor, kind: str, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each image; float32 [N].

    Args:
        logits: [N, classes], any floating type.
        labels: int64 [N], or [N, classes], one target in 0..1 for each.
        kind: `softmax`, or `sigmoid`: binary cross-entropy summed over classes (NaViT's setting).
        label_smoothing: share of the target that is spread evenly over the classes.
    """
    logits = logits.float()
    if kind == "softmax":
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    wanted = dense_labels(labels, logits.shape[1])
    wanted = wanted * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)


def mixed_labels(labels: Tensor, others: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Targets of mixed images: weight * own label + (1 - weight) * the other's; float32 [N, classes].

    Args:
        labels, others: int64 [N], or [N, classes].
        weights: float [N], 0..1.
    """
    weights = weights[:, None]
    return weights * dense_labels(labels, classes) + (1 - weights) * dense_labels(others, classes)


def dense_labels(labels: Tensor, classes: int) -> Tensor:
    """float32 [N, classes]: class indices as one-hot rows; rows stay as they are."""
    return (F.one_hot(labels, classes) if labels.ndim == 1 else labels).float()


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """t^2 * KL(teacher || student) of each image; float32 [N]. FlexiViT 3.5.

    t^2 keeps the gradient's size independent of the temperature (Hinton et al., arXiv 1503.02531, 2).

    Args:
        logits, teacher_logits: [N, classes], any floating type; divided by t.
    """
    student = F.log_softmax(logits.float() / temperature, 1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, 1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def distance(x: Tensor, target: Tensor, measure: str) -> Tensor:
    """How far rows [n, D] are from `target`: float32 [n].

    Args:
        measure: `cosine`, 1 - cos, or `smooth_l1`, the mean over channels.
    """
    x, target = x.float(), target.float()
    if measure == "cosine":
        return 1 - F.cosine_similarity(x, target)
    return F.smooth_l1_loss(x, target, reduction="none").mean(1)


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
