"""Comparisons of measurements: a paired test, and the Pareto front."""

from collections.abc import Sequence

import numpy as np

ALPHA = 0.05  # two answers whose p-value is at least this are not told apart


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value that two answers to the same images are equally often right (McNemar 1947).

    Only images for which exactly one of the two is right count; under the hypothesis, each is a fair coin
    toss.

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
    """Indices of the Pareto front by increasing cost: all cheaper points are less accurate.

    Of several points with the same cost and accuracy, only the first is returned.
    """
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i], i)):
        if not front or accuracies[index] > accuracies[front[-1]]:
            front.append(index)
    return front
