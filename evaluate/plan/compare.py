"""Comparisons of what was measured: intervals of shares, a paired test, and the Pareto front."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

ALPHA = 0.05  # two answers whose p-value is at least this are not told apart


def wilson(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which also holds near 0 and 1.

    Args:
        right, images: how many of how many; at least one image.
    """
    z = NormalDist().inv_cdf(1 - ALPHA / 2)
    share, weight = right / images, 1 + z * z / images
    middle = (share + z * z / (2 * images)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value that two answers to the same images are equally often right (McNemar 1947).

    Only images count where just one of the two is right: under the hypothesis each is a fair coin's toss.

    Args:
        first, second: bool [N], whether each is right.
    """
    alone = int((first & ~second).sum()), int((second & ~first).sum())
    tosses, fewer = sum(alone), min(alone)
    # Binomial coefficients as whole numbers, each from the one before: exact for any number of images.
    term = total = 1
    for heads in range(fewer):
        term = term * (tosses - heads) // (heads + 1)
        total += term
    return min(1.0, 2 * total / 2**tosses)


def pareto(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Indices of what nothing else beats, by increasing cost: all cheaper ones are less accurate.

    Of several with the same cost and accuracy the first stands for all.
    """
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i], i)):
        if not front or accuracies[index] > accuracies[front[-1]]:
            front.append(index)
    return front
