"""How well scores rank the images of each class, for sets whose images have several classes."""

import torch
from torch import Tensor


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """The average precision of each class over all points of its curve: float64 [C].

    It is the sum over thresholds of the precision times the gain in recall. Images with equal scores pass a
    threshold together, so their order does not matter.

    Args:
        scores: float [N, C]; the higher, the likelier.
        targets: [N, C], nonzero where an image has the class.

    Returns:
        NaN for a class that no image has.
    """
    found = torch.full((scores.shape[1],), torch.nan, dtype=torch.float64)
    for index in range(scores.shape[1]):
        positive = targets[:, index] != 0
        if positive.any():
            found[index] = _of_one_class(scores[:, index], positive)
    return found


def mean_average_precision(scores: Tensor, targets: Tensor) -> float | None:
    """The mean of `average_precision` over the classes that some image has; None if there are none."""
    found = average_precision(scores, targets)
    found = found[~found.isnan()]
    return float(found.mean()) if len(found) else None


def _of_one_class(scores: Tensor, positive: Tensor) -> Tensor:
    ranked, order = scores.sort(descending=True)
    hits = positive[order].double().cumsum(0)
    last = torch.ones_like(positive)
    last[:-1] = ranked[1:] != ranked[:-1]  # the last image of each threshold
    taken = torch.arange(1, len(scores) + 1, device=scores.device)[last]
    hits = hits[last]
    recall = hits / hits[-1]
    return (hits / taken * recall.diff(prepend=recall.new_zeros(1))).sum()
