"""Retrieval: the rank of an image's captions among all captions, and of a caption's image among all
images."""

from typing import NamedTuple

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)  # recall is measured among so many
TO_TEXT, TO_IMAGE = "image_to_text_r", "text_to_image_r"  # values of a row, before the depth
FIRST = f"{TO_TEXT}1"
# The values in the order of a row; all are shares in [0, 1].
VALUES = (
    FIRST,
    f"{FIRST}_low",
    f"{FIRST}_high",
    *(f"{TO_TEXT}{depth}" for depth in DEPTHS[1:]),
    *(f"{TO_IMAGE}{depth}" for depth in DEPTHS),
)
BLOCK = 2**22  # similarities at a time
PAIRS = 2**14  # pairs whose similarity is computed at a time


class Ranking(NamedTuple):
    """How many candidates rank before a right one; 0 is a hit at the first place.

    images: int64 [N], captions before the first of each image's own.
    texts: int64 [M], images before each caption's own.
    first: int64 [N], the caption that ranks first for each image.
    """

    images: Tensor
    texts: Tensor
    first: Tensor


def rank_pairs(images: Tensor, texts: Tensor, owner: Tensor) -> Ranking:
    """Rank captions for each image and images for each caption by their inner product.

    Among equal similarities, the lower index comes first. Similarities are float64 sums rounded to float32,
    so that equal embeddings tie at any place. O(N M E) multiply-adds; the N x M similarities are computed a
    few rows at a time, and none of them is stored.

    Args:
        images: float [N, E].
        texts: float [M, E].
        owner: int64 [M], the image of each caption. An image without captions has rank M.
    """
    images, texts = images.double(), texts.double()
    number = torch.arange(len(texts))
    parts = zip(owner.split(PAIRS), texts.split(PAIRS), strict=True)
    own = torch.cat([(images[some] * theirs).sum(1) for some, theirs in parts]).float()  # [M]
    best = torch.full((len(images),), -torch.inf).scatter_reduce(0, owner, own, "amax")
    # The first of an image's own captions that is as similar as the best of them.
    place = torch.where(own == best[owner], number, len(texts))
    right = torch.full((len(images),), len(texts)).scatter_reduce(0, owner, place, "amin")
    before_text = torch.zeros(len(texts), dtype=torch.int64)
    before_image, first = [], []
    for rows in torch.arange(len(images)).split(max(1, BLOCK // max(1, len(texts)))):
        scores = (images[rows] @ texts.T).float()  # [B, M]
        scores = torch.where(owner == rows[:, None], own, scores)
        goal = best[rows, None]
        earlier = (scores == goal) & (number < right[rows, None])
        before_image.append(((scores > goal) | earlier).sum(1))
        before_text += ((scores > own) | ((scores == own) & (rows[:, None] < owner))).sum(0)
        first.append(scores.argmax(1))
    return Ranking(torch.cat(before_image), before_text, torch.cat(first))


def recall(ranks: Tensor, depth: int, candidates: int) -> float | None:
    """The share of queries with a right candidate among the first `depth`.

    Args:
        ranks: int64 [N], see `Ranking`.
        candidates: number of ranked candidates; with no more than `depth`, the recall is None, because it
            would say nothing.
    """
    return float((ranks < depth).double().mean()) if candidates > depth else None
