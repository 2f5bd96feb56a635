"""How often a model is right, and the uncertainty of that number."""

import math

import torch
from torch import Tensor

# The standard normal distribution has 95 % of its mass within so many standard deviations.
DEVIATIONS = 1.959963984540054


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """The number of classes ranked before each image's label: int64 [N]; 0 is a correct answer.

    Among classes with equal logits, the one with the lower number comes first, as in `Tensor.argmax`.

    Args:
        logits: [N, C].
        labels: int64 [N], 0..C-1.
    """
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1])[None] < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a share at 95 %, inside [0, 1]; (NaN, NaN) without images.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if total == 0:
        return math.nan, math.nan
    share, z = correct / total, DEVIATIONS
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def class_accuracy(correct: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """The share of correct answers among the images of each class; None for a class without images.

    Args:
        correct: bool [N].
        labels: int64 [N], 0..classes-1.
    """
    right = torch.bincount(labels[correct], minlength=classes).tolist()
    total = torch.bincount(labels, minlength=classes).tolist()
    return [r / n if n else None for r, n in zip(right, total, strict=True)]
