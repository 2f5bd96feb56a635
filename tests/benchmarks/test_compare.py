"""What make gpu and make gpu-dry take for worse than before."""

from typing import Any

from gpu.compare import best, errors, flatten, goals, grown, rates, share, slower


def parts(tflops: float = 400.0, **others: Any) -> dict[str, Any]:
    """The parts of a run with one cell of MFU."""
    cell = {"B, 65536, compiled": {"tflops": tflops, "ms": 80.0}, "L, 65536, compiled": {"not_measured": "-"}}
    return {
        "mfu": {"result": cell},
        "peaks": {"result": {"matmul_tflops": 800.0}},
        **{name: {"result": result} for name, result in others.items()},
    }


def test_nested_results_become_flat():
    assert flatten({"a": {"b": 1, "c": {"d": "x"}}, "e": [2]}) == {"a / b": 1, "a / c / d": "x", "e": [2]}


def test_errors_are_found_at_any_depth():
    results = {"one": {"ok": True}, "two": {"part": {"error": "it broke"}}, "three": {"deviation": 0.1}}
    assert errors(results) == ["two / part: it broke"]


def test_what_must_not_grow():
    stored = {"step": {"waits": 0, "kernels": 52, "gb": 10.0, "mfu": 0.5}}
    assert grown({"step": {"waits": 0, "kernels": 51, "gb": 10.04, "mfu": 0.1, "number": 7}}, stored) == []
    worse = grown({"step": {"waits": 1, "kernels": 53, "gb": 10.06, "mfu": 0.6}}, stored)
    assert worse == [
        "step / waits was 0, is 1",
        "step / kernels was 52, is 53",
        "step / gb was 10.0, is 10.06",
    ]


def test_five_percent_less_is_slower_than_the_best_run():
    stored = best({"a": 400.0}, {"a": 380.0, "b": 50.0})
    assert stored == {"a": 400.0, "b": 50.0}
    assert slower({"a": 380.5}, stored) == []
    assert slower({"a": 379.0, "new": 1.0}, stored) == ["a was 400 -5.2%"]
    # Slow decay over many runs is seen, because the best one stays.
    assert slower({"a": 379.0}, best({"a": 381.0}, stored)) != []


def test_rates_and_shares_of_the_measured_peak():
    assert rates(parts()) == {"B, 65536, compiled": 400.0}
    assert share(parts(), "B, 65536, compiled") == 0.5
    assert share(parts(), "L, 65536, compiled") is None
    assert share({"mfu": parts()["mfu"]}, "B, 65536, compiled") is None


def test_goals_are_reached_from_the_right_side():
    found = {"peers": {"over_fixed": 0.96, "over_naflex": 1.9}, "patch_sizes": {"ten_over_one": 1.02}}
    reached = {name: (value, ok) for name, value, _, ok in goals(parts(480.0, **found))}
    assert list(reached.values()) == [
        (0.6, True),
        (None, False),
        (0.96, True),
        (1.9, False),
        (1.02, True),
        (None, False),
    ]
    waits = {name: ok for name, _, _, ok in goals(parts(training={"data_wait": 0.03}))}
    assert not waits["share of the time that training waits for data"]
