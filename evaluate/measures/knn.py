"""Classification by the nearest neighbours among labelled features."""

from typing import Literal

import torch
from torch import Tensor

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 2**24  # similarities that are held at once

Vote = Literal["weighted", "majority"]


def classify_by_neighbours(
    train: tuple[Tensor, Tensor],
    features: Tensor,
    k: int = NEIGHBOURS,
    vote: Vote = "weighted",
    chunk: int = CHUNK,
    leave_one_out: bool = False,
) -> Tensor:
    """The class that the k nearest images vote for: int64 [M].

    Neighbours are nearest by the cosine between features. A neighbour's vote has the weight exp(cosine /
    0.07) as in DINO (arXiv 2104.14294, after 1805.01978), or 1; among classes with equal votes the lowest
    wins.

    Args:
        train: features [N, D] and labels int64 [N] of the labelled images.
        features: [M, D] of the images to classify, of the same setting or of another one.
        chunk: similarities held at once, though at least those of one image to all N.

    Raises:
        ValueError: there are fewer than k labelled images.
    """
    known, labels = torch.nn.functional.normalize(train[0], dim=1), train[1]
    others = len(labels) - leave_one_out
    if not 1 <= k <= others:
        raise ValueError(f"{k} neighbours cannot be found among {others} images")
    classes = int(labels.max()) + 1
    found = [torch.zeros(0, dtype=torch.int64, device=features.device)]
    for part in torch.nn.functional.normalize(features, dim=1).split(max(1, chunk // len(labels))):
        similarity = part @ known.T
        if leave_one_out:
            # The diagonal of all images' similarities, as far as it runs through this part.
            similarity.diagonal(sum(map(len, found))).fill_(-torch.inf)
        nearness, places = similarity.topk(k)
        weights = (nearness / TEMPERATURE).exp() if vote == "weighted" else torch.ones_like(nearness)
        votes = weights.new_zeros(len(part), classes).scatter_add_(1, labels[places], weights)
        found.append(votes.argmax(1))
    return torch.cat(found)
