"""From an evaluation and a budget to a plan: the best setting, the best cascade, and the choice between
them."""

from dataclasses import dataclass

from packvit.evaluate.measures.classification import ACCURACY
from packvit.evaluate.plan.cascade import ROUNDING, Cascade
from packvit.evaluate.plan.choose import Alternative, Budget, choose_setting, find_alternatives, with_costs
from packvit.evaluate.plan.compare import mcnemar
from packvit.evaluate.plan.curve import Point, curve_values, make_curve
from packvit.evaluate.plan.evaluated import Evaluated, Row
from packvit.evaluate.plan.outcome import Halves, Outcome
from packvit.evaluate.plan.plan import Measured, Plan, Preprocessing, Stage


@dataclass(frozen=True)
class Comparison:
    """The best cascade against the chosen setting, both on the half that the cascade was not chosen on.

    Args:
        p_value: p-value of McNemar's exact test.
        taken: whether the cascade is the plan.
    """

    single: Outcome
    cascade: Outcome
    p_value: float
    taken: bool


@dataclass(frozen=True)
class Planned:
    """A plan and how it came about.

    Args:
        halves: the settings whose costs are known.
        chosen: index of the best single setting.
        comparison: None if no cascade is within the budget, or none was requested.
        points: the curve; empty if no cascade was requested.
    """

    plan: Plan
    halves: Halves
    chosen: int
    alternatives: list[Alternative]
    comparison: Comparison | None
    points: list[Point]


def make_plan(evaluated: Evaluated, budget: Budget, stages: int) -> Planned:
    """Choose a setting and, if `stages` is 2 or 3 and answers have a confidence, a cascade.

    A cascade becomes the plan if, on the half of the images that it was not chosen on, it is more accurate
    than the chosen setting. If an accuracy was requested, the cascade must be cheaper there and reach it, or
    at least the accuracy of the chosen setting there.

    Raises:
        ValueError: no setting is within the budget, or none has a known cost.
    """
    halves = Halves(with_costs(evaluated, budget.unit), budget)
    rows = halves.evaluated.rows
    chosen = choose_setting(rows, budget, evaluated.measure)
    alternatives = find_alternatives(halves.evaluated, chosen, budget)
    comparison, points = None, []
    if stages > 1 and evaluated.measure == ACCURACY:
        front = halves.search(stages)
        if budget.accuracy is not None:
            found = front.reaching(budget.accuracy)
        else:
            found = front.within(budget.most if budget.most is not None else float("inf"))
        if found is not None:
            comparison = _compare(halves, chosen, found)
        points = make_curve(halves, front)
    if comparison is not None and comparison.taken:
        best, measured = comparison.cascade.cascade, comparison.cascade.measured
    else:
        best, measured = Cascade((chosen,)), _measured(rows[chosen])
    thresholds = (*best.thresholds, None)
    plan = Plan(
        evaluated.model,
        tuple(
            Stage(rows[index].setting, rows[index].temperature, threshold)
            for index, threshold in zip(best.stages, thresholds, strict=True)
        ),
        Preprocessing(evaluated.config.image_mean, evaluated.config.image_std),
        measured,
        evaluated.classes,
        curve_values(halves, points),
        evaluated.measure,
    )
    return Planned(plan, halves, chosen, alternatives, comparison, points)


def _compare(halves: Halves, chosen: int, found: Cascade) -> Comparison:
    single, cascade = halves.measure(Cascade((chosen,))), halves.measure(found)
    wanted = halves.budget.accuracy
    ours, others = cascade.measured.accuracy, single.measured.accuracy
    if wanted is None:
        taken = ours > others
    else:
        taken = ours >= min(wanted, others) and cascade.cost < single.cost * (1 - ROUNDING)
    return Comparison(single, cascade, mcnemar(single.right, cascade.right), taken)


def _measured(row: Row) -> Measured:
    return Measured(
        accuracy=row.accuracy,
        accuracy_low=row.accuracy_low,
        accuracy_high=row.accuracy_high,
        ece_calibrated=row.ece_calibrated,
        tokens_per_image=row.tokens,
        gflops_per_image=row.gflops,
        latency_ms_p50=None if row.predicted else row.p50,
    )
