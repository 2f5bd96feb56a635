"""Accuracy over budget: the best cascade that was found, against the best single setting in hindsight.

The comparison favours single settings: the best on the reported half itself is used, at the budget or at the
cost of the cascade there, whichever is more; the cascade was found on the other half.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from packvit.common.plots import COLOURS, new_axes, save_figure
from packvit.evaluate.plan.cascade import ROUNDING, Cascade, Front
from packvit.evaluate.plan.choose import UNITS
from packvit.evaluate.plan.compare import mcnemar
from packvit.evaluate.plan.outcome import Halves, Outcome

WIDE = 8  # a wider range of budgets is drawn over its logarithm
POINTS = 40  # budgets, evenly in their logarithms, besides the cost of every setting


@dataclass(frozen=True)
class Point:
    """One budget.

    Args:
        budget: maximum mean cost of an image.
        single: the best setting in hindsight; None if even the cheapest is beyond the budget.
        cascade: the best one found on the other half; None if there is none.
        p_value: p-value of McNemar's exact test between the two.
    """

    budget: float
    single: Outcome | None
    cascade: Outcome | None
    p_value: float | None

    @property
    def gain(self) -> float:
        """How much more accurate the cascade is; 0 if there is no comparison."""
        if self.single is None or self.cascade is None:
            return 0.0
        return self.cascade.measured.accuracy - self.single.measured.accuracy


def make_curve(halves: Halves, front: Front) -> list[Point]:
    """A point for every budget, from the cheapest setting to the most expensive."""
    costs = halves.costs.mean(1)
    singles = [halves.measure(Cascade((index,))) for index in range(len(costs))]
    # A setting is within a budget that either its mean over this half or that over all images meets.
    prices = [min(float(cost), single.cost) for cost, single in zip(costs, singles, strict=True)]
    budgets = np.unique(np.concatenate([costs, np.geomspace(costs.min(), costs.max(), POINTS)]))
    measured: dict[Cascade, Outcome] = {}
    points = []
    for budget in budgets.tolist():
        found = front.within(budget)
        if found is not None and found not in measured:
            measured[found] = halves.measure(found)
        cascade = measured[found] if found is not None else None
        most = (max(budget, cascade.cost) if cascade else budget) * (1 + ROUNDING)
        within = [single for single, price in zip(singles, prices, strict=True) if price <= most]
        single = max(within, key=lambda s: (s.measured.accuracy, -s.cost), default=None)
        p_value = mcnemar(single.right, cascade.right) if single and cascade else None
        points.append(Point(budget, single, cascade, p_value))
    return points


def runs_above(points: Sequence[Point]) -> list[tuple[Point, ...]]:
    """The stretches of budgets at which the cascade is above every single setting."""
    return [tuple(run) for above, run in groupby(points, key=lambda point: point.gain > 0) if above]


def curve_values(halves: Halves, points: Sequence[Point]) -> tuple[dict[str, Any], ...]:
    """The points as JSON objects."""

    def values(outcome: Outcome | None) -> dict[str, Any] | None:
        if outcome is None:
            return None
        return {
            "stages": halves.names(outcome.cascade),
            "thresholds": list(outcome.cascade.thresholds),
            "shares": list(outcome.shares),
            "cost": outcome.cost,
            **asdict(outcome.measured),
        }

    return tuple(
        {
            "unit": halves.budget.unit,
            "budget": point.budget,
            "single": values(point.single),
            "cascade": values(point.cascade),
            "p_value": point.p_value,
        }
        for point in points
    )


def draw_curve(halves: Halves, points: Sequence[Point], path: Path) -> None:
    """cascade.png: accuracy on the reported half over cost.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = new_axes(8, 5)
    singles = [halves.measure(Cascade((index,))) for index in range(len(halves.costs))]
    axes.scatter(
        [single.cost for single in singles],
        [100 * single.measured.accuracy for single in singles],
        color=COLOURS[0],
        alpha=0.5,
        s=18,
        label="single settings",
    )
    lines = {
        "best single setting, in hindsight": ([point.single for point in points], COLOURS[0]),
        "best cascade, found on the other half": ([point.cascade for point in points], COLOURS[1]),
    }
    for label, (outcomes, colour) in lines.items():
        shown = [(point.budget, o) for point, o in zip(points, outcomes, strict=True) if o is not None]
        budgets = [budget for budget, _ in shown]
        accuracy = [100 * outcome.measured.accuracy for _, outcome in shown]
        axes.step(budgets, accuracy, where="post", color=colour, label=label)
        if colour == COLOURS[1]:
            low = [100 * outcome.measured.accuracy_low for _, outcome in shown]
            high = [100 * outcome.measured.accuracy_high for _, outcome in shown]
            axes.fill_between(budgets, low, high, step="post", color=colour, alpha=0.12, linewidth=0)
    if points[-1].budget > WIDE * points[0].budget:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    # Settings that are far below the rest would leave it no room.
    lowest = points[len(points) // 4]
    if lowest.single is not None:
        axes.set_xlim(left=lowest.budget)
        axes.set_ylim(bottom=100 * lowest.single.measured.accuracy - 1)
    axes.set_xlabel(f"{UNITS[halves.budget.unit]} an image")
    axes.set_ylabel("accuracy, %")
    images = len(singles[0].right)
    axes.set_title(
        f"Cascades against single settings, on the {images} images that cascades were not chosen by"
    )
    axes.legend(loc="lower right")
    save_figure(figure, path)
