"""Cascades: images whose confidence at one setting is below a threshold are shown again at the next.

With settings of costs n1 and n2, and a share a of images that continue, an image costs n1 + a * n2 (NaViT,
arXiv 2307.06304, appendix). The search is over all settings and thresholds at once: every cascade is a pair
of its cost and its number of right answers, and `Front` keeps the cheapest one for each number of right
answers. This answers every budget, and every requested accuracy, without another search.

Two stages: exact. With the N images sorted by the first setting's confidence, cumulative sums give the cost
and the right answers at all N thresholds: O(N log N) for each pair of settings. Three stages, each more
expensive than the one before: thresholds lie on a grid of G by G, more closely spaced where few images
continue. Sums over its cells, accumulated along both axes, give all thresholds at once: O(N + G^2 log G) for
each triple. It is exact if G is at least the number of different confidences.
"""

from dataclasses import dataclass

import numpy as np

GRID = 64  # thresholds of each of the first two stages of three
ROUNDING = 1e-9  # relative: sums of costs in another order still meet the same budget


@dataclass(frozen=True)
class Cascade:
    """Indices of settings in the order of the stages, and the threshold of each stage except the last."""

    stages: tuple[int, ...]
    thresholds: tuple[float, ...] = ()


class Front:
    """The cheapest cascade found so far for every number of right answers to `images` images."""

    def __init__(self, images: int) -> None:
        self.images = images
        self._cost = np.full(images + 1, np.inf)  # summed over images
        self._found: list[Cascade | None] = [None] * (images + 1)

    def offer(
        self, stages: tuple[int, ...], thresholds: np.ndarray, cost: np.ndarray, right: np.ndarray
    ) -> None:
        """Consider the cascades of these stages at M choices of thresholds.

        Args:
            thresholds: float64 [M, stages - 1].
            cost: float64 [M], summed over images.
            right: int64 [M].
        """
        rising = bool(np.all(cost[:-1] < cost[1:]))
        order = np.arange(len(cost)) if rising else np.lexsort((-right, cost))
        reached = np.maximum.accumulate(right[order])
        order = order[np.diff(reached, prepend=-1) > 0]
        for place in order[cost[order] < self._cost[right[order]]]:
            number = int(right[place])
            self._cost[number] = cost[place]
            self._found[number] = Cascade(stages, tuple(float(t) for t in thresholds[place]))

    def within(self, budget: float) -> Cascade | None:
        """The most accurate cascade of at most this mean cost, the cheapest of these; None: there is none."""
        most = budget * self.images * (1 + ROUNDING)
        meets = np.flatnonzero(np.isfinite(self._cost) & (self._cost <= most))
        return self._found[meets[-1]] if len(meets) else None

    def reaching(self, accuracy: float) -> Cascade | None:
        """The cheapest cascade of at least this accuracy, the most accurate of these; None: there is none."""
        first = int(np.ceil(accuracy * self.images * (1 - ROUNDING)))
        costs = self._cost[first:]
        if not np.isfinite(costs).any():
            return None
        return self._found[first + int(np.flatnonzero(costs == costs.min())[-1])]


def search(
    correct: np.ndarray,
    confidence: np.ndarray,
    costs: np.ndarray,
    stages: int,
    *,
    worst: bool = False,
    grid: int = GRID,
) -> Front:
    """All cascades of two, or of two and three stages.

    Args:
        correct: bool [K, N]; whether each of K settings is right about each image.
        confidence: float64 [K, N].
        costs: float64 [K, N].
        stages: at most so many.
        worst: see `stage_costs`.
        grid: G.
    """
    front = Front(correct.shape[1])
    if stages >= 2:
        _offer_pairs(front, correct, confidence, costs, worst)
    if stages >= 3:
        _offer_triples(front, correct, confidence, costs, worst, grid)
    return front


def _offer_pairs(
    front: Front, correct: np.ndarray, confidence: np.ndarray, costs: np.ndarray, worst: bool
) -> None:
    """All pairs of settings, at every threshold that parts the images."""
    for first in range(len(correct)):
        order = np.argsort(confidence[first], kind="stable")
        values = confidence[first][order]
        # Images of the same confidence go on together: after these places there is a threshold.
        last = np.flatnonzero(values[:-1] < values[1:])
        thresholds = ((values[last] + values[last + 1]) / 2)[:, None]
        for second in range(len(correct)):
            if second == first:
                continue
            change = (correct[second].astype(np.int8) - correct[first])[order]
            right = correct[first].sum() + np.cumsum(change, dtype=np.int64)[last]
            paid = stage_costs((first, second), costs, worst)
            cost = paid[0].sum() + np.cumsum(paid[1][order])[last]
            front.offer((first, second), thresholds, cost, right)


def _edges(confidence: np.ndarray, grid: int) -> np.ndarray:
    """At most `grid` thresholds, each halfway between two confidences; quadratic quantiles of all of them."""
    values = np.unique(confidence)
    edges = (values[:-1] + values[1:]) / 2
    if len(edges) <= grid:
        return edges
    shares = (np.arange(1, grid + 1) / (grid + 1)) ** 2
    wanted = np.quantile(confidence, shares)
    return np.unique(edges[np.searchsorted(edges, wanted).clip(0, len(edges) - 1)])


def _offer_triples(
    front: Front, correct: np.ndarray, confidence: np.ndarray, costs: np.ndarray, worst: bool, grid: int
) -> None:
    """All triples of settings of rising cost, at all pairs of thresholds of the grid."""
    means = costs.mean(1)
    by_cost = sorted(range(len(costs)), key=lambda index: (means[index], index))
    edges = [_edges(row, grid) for row in confidence]
    # How many thresholds are not above an image's confidence: the i-th sends it on if that is <= i.
    bins = [np.searchsorted(own, row, side="right") for own, row in zip(edges, confidence, strict=True)]
    for place, first in enumerate(by_cost):
        for later, second in enumerate(by_cost[place + 1 :], place + 1):
            shape = len(edges[first]) + 1, len(edges[second]) + 1
            if min(shape) < 2:
                continue
            cell = bins[first] * shape[1] + bins[second]
            rows, cols = np.indices((shape[0] - 1, shape[1] - 1)).reshape(2, -1)
            thresholds = np.stack([edges[first][rows], edges[second][cols]], 1)
            one, two = (_below(cell, shape, correct[index]) for index in (first, second))
            # Those that end at the first stage, and those that go on from it and end at the second.
            early = one[-1, -1] - one[:, -1:] + two[:, -1:] - two
            for third in by_cost[later + 1 :]:
                right = early + _below(cell, shape, correct[third])
                triple = (first, second, third)
                paid = stage_costs(triple, costs, worst)
                onward = _below(cell, shape, paid[1])[:, -1:] + _below(cell, shape, paid[2])
                cost = paid[0].sum() + onward
                whole = np.rint(right[rows, cols]).astype(np.int64)
                front.offer(triple, thresholds, cost[rows, cols], whole)


def _below(cell: np.ndarray, shape: tuple[int, int], values: np.ndarray) -> np.ndarray:
    """float64 [shape]: sums over the images in the cells up to (i, j), along both axes."""
    sums = np.bincount(cell, weights=values, minlength=shape[0] * shape[1]).reshape(shape)
    return sums.cumsum(0).cumsum(1)


def follow(cascade: Cascade, confidence: np.ndarray) -> np.ndarray:
    """int64 [N]: the place in `cascade.stages` at which each image ends.

    Args:
        confidence: float64 [K, N].
    """
    end = np.zeros(confidence.shape[1], np.int64)
    for place, threshold in enumerate(cascade.thresholds):
        goes_on = (end == place) & (confidence[cascade.stages[place]] < threshold)
        end[goes_on] = place + 1
    return end


def stage_costs(stages: tuple[int, ...], costs: np.ndarray, worst: bool = False) -> np.ndarray:
    """float64 [stages, N]: what each image that reaches a stage pays there.

    Args:
        costs: float64 [K, N].
        worst: charge every image for all stages at the first one, as if it passed them all, to limit the cost
            of the slowest images, which a mean would not show.
    """
    paid = costs[list(stages)]
    if worst:
        paid = np.concatenate([paid.sum(0, keepdims=True), np.zeros_like(paid[1:])])
    return paid


def cascade_costs(cascade: Cascade, end: np.ndarray, costs: np.ndarray, worst: bool = False) -> np.ndarray:
    """float64 [N]: what each image costs at all stages that it passes.

    Args:
        end: the result of `follow`.
        costs, worst: see `stage_costs`.
    """
    passed = np.cumsum(stage_costs(cascade.stages, costs, worst), 0)
    return passed[end, np.arange(len(end))]
