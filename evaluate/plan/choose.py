"""The best single setting for a budget, and its alternatives."""

from dataclasses import dataclass
from typing import Literal

from packvit.evaluate.measures.classification import ACCURACY
from packvit.evaluate.plan.compare import ALPHA, mcnemar, pareto
from packvit.evaluate.plan.evaluated import Evaluated, Row, Unit
from packvit.evaluate.report import words

UNITS: dict[Unit, str] = {"tokens": "tokens", "gflops": "GFLOPs", "p50": "ms (p50)", "p99": "ms (p99)"}
NEIGHBOURS = 2  # alternatives on each side of the Pareto front
ALIKE = 4  # alternatives that no test tells apart


@dataclass(frozen=True)
class Budget:
    """What is requested: the most accurate setting within a cost, or the cheapest with an accuracy.

    Args:
        unit: unit of costs; p50 and p99 are milliseconds at batch 1.
        most: maximum mean cost of an image; None: any.
        accuracy: minimum share of images; None: as accurate as possible.

    Raises:
        ValueError: a limit is not above 0, or an accuracy not in [0, 1].
    """

    unit: Unit = "gflops"
    most: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.most is not None and not 0 < self.most < float("inf"):
            raise ValueError(f"a budget of {self.most:g} {UNITS[self.unit]} must be positive and finite")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError(f"min-accuracy={self.accuracy:g} must be a share in [0, 1], such as 0.9")

    @property
    def worst(self) -> bool:
        """Whether the limit is on the slowest images, so that each counts as passing all stages."""
        return self.unit == "p99"


def make_budget(
    max_tokens: float | None = None,
    max_gflops: float | None = None,
    max_ms: float | None = None,
    min_accuracy: float | None = None,
    percentile: Literal["p50", "p99"] = "p50",
) -> Budget:
    """The budget for one of the limits; without any, the most accurate setting is requested.

    Raises:
        ValueError: there are several limits, or one is impossible.
    """
    limits = {
        "max-tokens": max_tokens,
        "max-gflops": max_gflops,
        "max-ms": max_ms,
        "min-accuracy": min_accuracy,
    }
    given = [name for name, value in limits.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: give one of them")
    if max_tokens is not None:
        return Budget("tokens", max_tokens)
    if max_ms is not None:
        return Budget(percentile, max_ms)
    return Budget("gflops", max_gflops, min_accuracy)


@dataclass(frozen=True)
class Alternative:
    """Another setting.

    Args:
        index: index of the row.
        p_value: p-value of McNemar's exact test against the chosen setting, on all images.
        why: why it is named, in words.
    """

    index: int
    p_value: float
    why: str


def known_cost(row: Row, unit: Unit) -> float:
    """The cost of a row of `with_costs`."""
    cost = row.cost(unit)
    assert cost is not None
    return cost


def with_costs(evaluated: Evaluated, unit: Unit) -> Evaluated:
    """The evaluation without the settings whose cost is not known.

    Raises:
        ValueError: it is not known of any.
    """
    known = [index for index, row in enumerate(evaluated.rows) if row.cost(unit) is not None]
    if not known:
        raise ValueError(f"no setting has a measured latency ({unit}): limit tokens or GFLOPs instead")
    return evaluated.only(known, "its latency was not measured (--interpolate predicts it)")


def choose_setting(rows: tuple[Row, ...], budget: Budget, measure: str = ACCURACY) -> int:
    """Index of the most accurate setting within the budget, or of the cheapest that is accurate enough.

    Args:
        measure: the value that is used as accuracy, for messages.

    Raises:
        ValueError: there is none; names the closest one.
    """
    unit = UNITS[budget.unit]
    costs = [known_cost(row, budget.unit) for row in rows]
    cheapest = min(range(len(rows)), key=lambda i: (costs[i], -rows[i].accuracy))
    best = max(range(len(rows)), key=lambda i: (rows[i].accuracy, -costs[i]))
    if budget.accuracy is not None:
        enough = [i for i, row in enumerate(rows) if row.accuracy >= budget.accuracy]
        if not enough:
            what = "an accuracy" if measure == ACCURACY else words(measure)
            raise ValueError(
                f"no setting has {what} of at least {budget.accuracy:.2%}: the most accurate is "
                f"{rows[best].setting.name} with {rows[best].accuracy:.2%}"
            )
        return min(enough, key=lambda i: (costs[i], -rows[i].accuracy))
    most = budget.most if budget.most is not None else max(costs)
    within = [i for i, cost in enumerate(costs) if cost <= most]
    if not within:
        raise ValueError(
            f"no setting costs at most {most:g} {unit} an image: the cheapest is "
            f"{rows[cheapest].setting.name} with {costs[cheapest]:.4g} {unit}"
        )
    return max(within, key=lambda i: (rows[i].accuracy, -costs[i]))


def find_alternatives(evaluated: Evaluated, chosen: int, budget: Budget) -> list[Alternative]:
    """The neighbours on the Pareto front, and the cheapest that a paired test does not tell apart, by cost.

    The latter must be within the budget, if there is one. The test is made for each setting separately, on
    the same images: of twenty equally good settings, about one will seem different.
    """
    rows = evaluated.rows
    costs = [known_cost(row, budget.unit) for row in rows]
    accuracies = [row.accuracy for row in rows]
    front = [index for index in pareto(costs, accuracies) if index != chosen]
    cheaper = [index for index in front if costs[index] < costs[chosen]][-NEIGHBOURS:]
    dearer = [index for index in front if costs[index] > costs[chosen]][:NEIGHBOURS]
    why = dict.fromkeys(cheaper, "best below") | dict.fromkeys(dearer, "best above")
    tested = {
        index: mcnemar(evaluated.correct[chosen], evaluated.correct[index])
        for index in range(len(rows))
        if index != chosen
    }
    most = budget.most if budget.most is not None else max(costs)
    alike = [index for index, p in tested.items() if p >= ALPHA and costs[index] <= most]
    for index in sorted(alike, key=lambda i: (costs[i], -accuracies[i]))[:ALIKE]:
        why.setdefault(index, "as accurate")
    return [
        Alternative(index, tested[index], why[index]) for index in sorted(why, key=lambda i: (costs[i], i))
    ]
