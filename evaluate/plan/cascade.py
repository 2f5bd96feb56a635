"""Cascades: images whose confidence at one setting is below a threshold are shown again at the next.

With settings of costs n1 and n2, and a share a of images that goes on, an image costs n1 + a * n2 (NaViT,
arXiv 2307.06304, appendix). The search is over all settings and thresholds at once: every cascade is a point
of cost and of images that it gets right, and `Front` keeps the cheapest one for each number of right images.
That answers every budget, and every accuracy asked for, without another search.

Two stages: exact. With the N images sorted by the first setting's confidence, cumulative sums give the cost
and the right answers at all N thresholds: O(N log N) for each pair of settings.
Three stages, each dearer than the one before: thresholds lie on a grid of G by G, closer together where few
images go on. Sums over its cells, accumulated along both axes, give all thresholds at once: O(N + G^2 log G)
for each triple. It is exact where G is at least the number of different confidences.
"""

from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

GRID = 64  # thresholds of each of the first two stages of three
ROUNDING = 1e-9  # relative: sums of costs in another order still meet the same budget


@dataclass(frozen=True)
class Cascade:
    """Indices of settings in the order of the stages, and the threshold of each stage but the last."""

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
        order = np.lexsort((-right, cost))
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
    settings, images = correct.shape
    front = Front(images)
    if stages >= 2:
        for pair in permutations(range(settings), 2):
            paid = stage_costs(pair, costs, worst)
            front.offer(pair, *_pair(correct, confidence, paid, pair))
    if stages >= 3:
        means = costs.mean(1)
        by_cost = sorted(range(settings), key=lambda index: (means[index], index))
        edges = [_edges(row, grid) for row in confidence]
        # How many thresholds are not above an image's confidence: the i-th sends it on if that is <= i.
        bins = [np.searchsorted(edges[k], confidence[k], side="right") for k in range(settings)]
        for triple in combinations(by_cost, 3):
            if all(len(edges[k]) for k in triple[:2]):
                paid = stage_costs(triple, costs, worst)
                front.offer(triple, *_triple(correct, paid, triple, edges, bins))
    return front


def _pair(
    correct: np.ndarray, confidence: np.ndarray, paid: np.ndarray, pair: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, cost and right answers of two settings, at every threshold that parts the images."""
    first, second = pair
    order = np.argsort(confidence[first], kind="stable")
    values = confidence[first][order]
    change = correct[second][order].astype(np.int64) - correct[first][order]
    right = correct[first].sum() + np.cumsum(change)
    cost = paid[0].sum() + np.cumsum(paid[1][order])
    # Images of the same confidence go on together.
    last = np.flatnonzero(values[:-1] < values[1:])
    return ((values[last] + values[last + 1]) / 2)[:, None], cost[last], right[last]


def _edges(confidence: np.ndarray, grid: int) -> np.ndarray:
    """At most `grid` thresholds, each halfway between two confidences; quadratic quantiles of all of them."""
    values = np.unique(confidence)
    edges = (values[:-1] + values[1:]) / 2
    if len(edges) <= grid:
        return edges
    shares = (np.arange(1, grid + 1) / (grid + 1)) ** 2
    wanted = np.quantile(confidence, shares)
    return np.unique(edges[np.searchsorted(edges, wanted).clip(0, len(edges) - 1)])


def _triple(
    correct: np.ndarray,
    paid: np.ndarray,
    triple: tuple[int, ...],
    edges: list[np.ndarray],
    bins: list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, cost and right answers of three settings, at all pairs of thresholds of the grid."""
    first, second = triple[:2]
    shape = len(edges[first]) + 1, len(edges[second]) + 1
    cell = bins[first] * shape[1] + bins[second]

    def below(values: np.ndarray) -> np.ndarray:
        """Sums over the images in the cells up to (i, j), along both axes."""
        sums = np.bincount(cell, weights=values, minlength=shape[0] * shape[1]).reshape(shape)
        return sums.cumsum(0).cumsum(1)

    one, two, three = (below(correct[k]) for k in triple)
    # All images, less those that go on from the first stage, less those that go on from the second.
    right = one[-1, -1] - one[:, -1:] + two[:, -1:] - two + three
    cost = paid[0].sum() + below(paid[1])[:, -1:] + below(paid[2])
    rows, cols = np.indices((shape[0] - 1, shape[1] - 1)).reshape(2, -1)
    thresholds = np.stack([edges[first][rows], edges[second][cols]], 1)
    return thresholds, cost[rows, cols], np.rint(right[rows, cols]).astype(np.int64)


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
        worst: every image pays for all stages at the first one, as if it passed them all: a limit on the
            slowest images, of which no mean says anything.
    """
    paid = costs[list(stages)]
    if worst:
        paid = np.concatenate([paid.sum(0, keepdims=True), np.zeros_like(paid[1:])])
    return paid


def cascade_costs(cascade: Cascade, end: np.ndarray, costs: np.ndarray, worst: bool = False) -> np.ndarray:
    """float64 [N]: what each image costs at all stages that it passes.

    Args:
        end: what `follow` says.
        costs, worst: see `stage_costs`.
    """
    passed = np.cumsum(stage_costs(cascade.stages, costs, worst), 0)
    return passed[end, np.arange(len(end))]
