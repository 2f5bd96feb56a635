"""Cascades: the fast search against one that tries everything, and which images decide what."""

from dataclasses import replace
from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packvit.evaluate.plan.cascade import Cascade, cascade_costs, follow, search
from packvit.evaluate.plan.choose import Budget, choose_setting, find_alternatives
from packvit.evaluate.plan.compare import mcnemar, pareto
from packvit.evaluate.plan.curve import make_curve, runs_above
from packvit.evaluate.plan.evaluated import Evaluated, Row
from packvit.evaluate.plan.make import make_plan
from packvit.evaluate.plan.outcome import Halves
from packvit.evaluate.plan.plan import PlannedModel
from packvit.evaluate.setting import Setting
from packvit.models import ViTConfig


def one_by_one(stages, thresholds, correct, confidence, costs, worst=False) -> tuple[float, int]:
    """Cost and right answers of a cascade, image by image."""
    cost, right = 0.0, 0
    for image in range(correct.shape[1]):
        place = 0
        paid = [costs[stage][image] for stage in stages]
        while place < len(thresholds) and confidence[stages[place]][image] < thresholds[place]:
            place += 1
        cost += sum(paid) if worst else sum(paid[: place + 1])
        right += int(correct[stages[place]][image])
    return cost, right


def between(values: np.ndarray) -> list[float]:
    known = sorted(set(values.tolist()))
    return [(a + b) / 2 for a, b in pairwise(known)]


def everything(correct, confidence, costs, stages, worst) -> list[tuple[float, int]]:
    """(cost, right) of every cascade with every threshold."""
    every = range(len(correct))
    orders = list(permutations(every, 2))
    if stages == 3:
        by_cost = sorted(every, key=lambda k: (costs[k].mean(), k))
        orders += list(combinations(by_cost, 3))
    return [
        one_by_one(order, thresholds, correct, confidence, costs, worst)
        for order in orders
        for thresholds in product(*(between(confidence[k]) for k in order[:-1]))
    ]


@st.composite
def answers(draw, most_images=7):
    number, images = draw(st.integers(1, 4)), draw(st.integers(1, most_images))

    def array(values, kind):
        rows = st.lists(st.lists(values, min_size=images, max_size=images), min_size=number, max_size=number)
        return np.array(draw(rows), kind)

    confidence = array(st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9, 1.0]), float)
    return array(st.booleans(), bool), confidence, array(st.integers(1, 5), float)


@given(answers(), st.sampled_from([2, 3]), st.booleans(), st.integers(0, 80), st.integers(0, 7))
def test_the_search_finds_what_trying_everything_finds(data, stages, worst, budget, wanted):
    correct, confidence, costs = data
    images = correct.shape[1]
    tried = everything(correct, confidence, costs, stages, worst)
    front = search(correct, confidence, costs, stages, worst=worst)

    def look(found: Cascade | None, best: list[tuple[float, int]]) -> None:
        assert (found is None) == (not best)
        if found is not None:
            values = one_by_one(found.stages, found.thresholds, correct, confidence, costs, worst)
            assert values == best[0]

    within = sorted((t for t in tried if t[0] <= budget), key=lambda t: (-t[1], t[0]))
    look(front.within(budget / images), within)
    enough = sorted((t for t in tried if t[1] >= wanted), key=lambda t: (t[0], -t[1]))
    look(front.reaching(wanted / images), enough)
    look(front.within(float("inf")), sorted(tried, key=lambda t: (-t[1], t[0])))


@settings(max_examples=30)
@given(answers(most_images=12), st.integers(1, 3), st.integers(1, 60))
def test_a_coarse_grid_finds_no_more_than_a_fine_one_and_tells_the_truth(data, grid, budget):
    correct, confidence, costs = data
    images = correct.shape[1]
    coarse = search(correct, confidence, costs, 3, grid=grid).within(budget / images)
    fine = search(correct, confidence, costs, 3).within(budget / images)
    if coarse is not None:
        assert fine is not None
        values = [one_by_one(c.stages, c.thresholds, correct, confidence, costs) for c in (coarse, fine)]
        assert values[0][0] <= budget
        assert values[0][1] <= values[1][1]


@given(answers(), st.data())
def test_images_follow_a_cascade_as_one_by_one(data, choose):
    correct, confidence, costs = data
    stages = tuple(choose.draw(st.lists(st.integers(0, len(correct) - 1), min_size=1, max_size=3)))
    thresholds = tuple(choose.draw(st.sampled_from([0.0, 0.4, 0.7, 1.0])) for _ in stages[1:])
    cascade = Cascade(stages, thresholds)
    end = follow(cascade, confidence)
    for worst in (False, True):
        cost, right = one_by_one(stages, thresholds, correct, confidence, costs, worst)
        assert cascade_costs(cascade, end, costs, worst).sum() == pytest.approx(cost)
    assert correct[np.array(stages)[end], np.arange(len(end))].sum() == right


# ---- single settings ----


@given(st.lists(st.booleans(), max_size=9), st.data())
def test_mcnemar_counts_the_tosses_of_a_coin(first, choose):
    second = [choose.draw(st.booleans()) for _ in first]
    alone = [a for a, b in zip(first, second, strict=True) if a != b]
    fewer = min(sum(alone), len(alone) - sum(alone))
    tosses = list(product([0, 1], repeat=len(alone)))
    extreme = sum(min(sum(toss), len(toss) - sum(toss)) <= fewer for toss in tosses)
    found = mcnemar(np.array(first, bool), np.array(second, bool))
    assert found == pytest.approx(extreme / len(tosses))
    assert found == mcnemar(np.array(second, bool), np.array(first, bool))


def test_mcnemar_holds_for_very_many_images():
    first, second = np.zeros(20_000, bool), np.zeros(20_000, bool)
    first[:6000], second[10_000:15_700] = True, True
    assert 0.005 < mcnemar(first, second) < 0.006  # (300 - 1)^2 / 11700 = 7.64 of chi-squared


COSTS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=6)


@given(COSTS)
def test_the_front_is_what_nothing_beats(points):
    front = pareto([cost for cost, _ in points], [accuracy for _, accuracy in points])
    beaten = [
        any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        for cost, accuracy in points
    ]
    assert {points[i] for i in front} == {p for p, b in zip(points, beaten, strict=True) if not b}
    assert len(front) == len({points[i] for i in front})


@given(COSTS, st.integers(1, 5), st.sampled_from(["tokens", "gflops", "p50", "p99"]))
def test_the_best_setting_is_chosen_within_every_kind_of_budget(points, limit, unit):
    rows = tuple(
        replace(make_row(k), accuracy=accuracy / 5, **{unit: float(cost)})
        for k, (cost, accuracy) in enumerate(points)
    )
    within = [(-accuracy, cost) for cost, accuracy in points if cost <= limit]
    if within:
        chosen = points[choose_setting(rows, Budget(unit, limit))]
        assert (-chosen[1], chosen[0]) == min(within)
    else:
        with pytest.raises(ValueError, match="the cheapest is r"):
            choose_setting(rows, Budget(unit, limit))
    enough = [(cost, -accuracy) for cost, accuracy in points if accuracy >= limit]
    if enough:
        chosen = points[choose_setting(rows, Budget(unit, accuracy=limit / 5))]
        assert (chosen[0], -chosen[1]) == min(enough)
    else:
        with pytest.raises(ValueError, match="the most accurate is r"):
            choose_setting(rows, Budget(unit, accuracy=limit / 5))


# ---- halves ----


def make_row(index: int) -> Row:
    return Row(Setting(8, 16 * (index + 1)), 0.5, 0.4, 0.6, 0.1, 1.0, 4.0 * (index + 1) ** 2, 1.0)


def make_evaluated(correct: np.ndarray, confidence: np.ndarray, tokens: np.ndarray) -> Evaluated:
    rows = tuple(
        replace(make_row(k), accuracy=float(correct[k].mean()), tokens=float(tokens[k].mean()))
        for k in range(len(correct))
    )
    return Evaluated(
        model=PlannedModel("model", "ab" * 32),
        config=ViTConfig(width=32, depth=1, heads=2, num_classes=10),
        device="cpu",
        classes=None,
        rows=rows,
        fit_half=np.arange(correct.shape[1]) % 2 == 0,
        correct=correct,
        confidence=confidence,
        tokens=tokens,
    )


def draw_answers(seed: int, images: int = 400) -> Evaluated:
    """Settings of rising cost, each right about the easier images, and less confident of harder ones."""
    rng = np.random.default_rng(seed)
    hard = rng.random(images)
    strength = np.array([0.5, 0.7, 0.8, 0.85])[:, None]
    noise = rng.normal(0, 0.1, (4, images))
    correct = hard + noise < strength
    confidence = 1 / (1 + np.exp(5 * (hard - strength + rng.normal(0, 0.1, (4, images)))))
    return make_evaluated(correct, confidence, np.array([[4], [16], [36], [64]]) * np.ones((1, images), int))


@pytest.mark.parametrize("stages", [2, 3])
def test_thresholds_come_from_one_half_and_numbers_from_the_other(stages):
    evaluated, budget = draw_answers(0), Budget("tokens", 20)
    other = ~evaluated.fit_half

    def changed(half: np.ndarray) -> Evaluated:
        """Nonsense in one half."""
        correct, confidence = evaluated.correct.copy(), evaluated.confidence.copy()
        correct[:, half], confidence[:, half] = ~correct[:, half], 1 - confidence[:, half]
        return replace(evaluated, correct=correct, confidence=confidence)

    halves = Halves(evaluated, budget)
    found = halves.search(stages).within(20)
    assert found is not None
    assert Halves(changed(other), budget).search(stages).within(20) == found
    assert Halves(changed(~other), budget).search(stages).within(20) != found
    measured = halves.measure(found)
    assert Halves(changed(~other), budget).measure(found).measured == measured.measured
    cost, right = one_by_one(
        found.stages,
        found.thresholds,
        evaluated.correct[:, other],
        evaluated.confidence[:, other],
        evaluated.tokens[:, other],
    )
    assert measured.measured.accuracy == pytest.approx(right / other.sum())
    assert measured.cost == measured.measured.tokens_per_image == pytest.approx(cost / other.sum())
    assert measured.shares[0] == 1


def test_a_cascade_becomes_the_plan_where_it_is_better_on_the_other_half():
    planned = make_plan(draw_answers(1), Budget("tokens", 20), 2)
    assert planned.comparison is not None
    assert planned.comparison.taken
    assert len(planned.plan.stages) == 2
    assert planned.plan.stages[0].threshold is not None
    assert planned.plan.measured == planned.comparison.cascade.measured
    assert planned.plan.measured.accuracy > planned.comparison.single.measured.accuracy
    above = runs_above(planned.points)
    assert above
    assert all(p.gain > 0 for run in above for p in run)


def test_settings_that_answer_alike_give_no_cascade():
    one = draw_answers(2)
    same = replace(one, correct=one.correct[[0] * 4], confidence=one.confidence[[0] * 4])
    same = replace(same, rows=tuple(replace(row, accuracy=same.rows[0].accuracy) for row in same.rows))
    planned = make_plan(same, Budget("tokens", 64), 3)
    assert runs_above(planned.points) == []
    assert [stage.setting for stage in planned.plan.stages] == [same.rows[0].setting]
    assert {other.p_value for other in find_alternatives(same, 0, Budget("tokens"))} == {1.0}


def test_the_curve_compares_with_the_best_setting_there_is():
    halves = Halves(draw_answers(3), Budget("tokens"))
    points = make_curve(halves, halves.search(2))
    singles = [halves.measure(Cascade((k,))) for k in range(4)]
    for point in points:
        most = max(point.budget, point.cascade.cost if point.cascade else 0)
        best = max((s.measured.accuracy for s in singles if s.cost <= most), default=None)
        assert (point.single.measured.accuracy if point.single else None) == best
        if point.single and point.cascade:
            assert point.p_value == mcnemar(point.single.right, point.cascade.right)
    assert [p.budget for p in points] == sorted(p.budget for p in points)
    assert {4.0, 16.0, 36.0, 64.0} <= {p.budget for p in points}


def test_an_accuracy_asked_for_is_reached_at_less_cost():
    planned = make_plan(draw_answers(4, 2000), Budget("tokens", accuracy=0.75), 2)
    assert planned.comparison is not None
    assert planned.comparison.taken
    assert planned.plan.measured.tokens_per_image < planned.comparison.single.measured.tokens_per_image
    single = planned.comparison.single.measured.accuracy
    assert planned.plan.measured.accuracy >= min(0.75, single)
