"""What corruptions cost, in a few numbers."""

import pytest

from packvit.evaluate.measures.robustness import mean_corruption_error, summarise_corruptions


def rows(setting: str, **more) -> list[dict]:
    accuracy = {"main": 0.9, "fog-1": 0.8, "fog-5": 0.4, "snow-1": 0.7, "sketch": 0.1}
    return [{"set": name, "setting": setting, "accuracy": value, **more} for name, value in accuracy.items()]


def test_accuracy_is_averaged_over_strengths_then_over_kinds():
    only_clean = [{"set": "main", "setting": "r64-p8", "accuracy": 0.5}]
    found = summarise_corruptions(rows("r32-p8") + only_clean)
    assert found == [
        {
            "setting": "r32-p8",
            "clean": 0.9,
            "corrupted": pytest.approx((0.6 + 0.7) / 2),
            "kinds": {"fog": pytest.approx(0.6), "snow": 0.7},
            "strengths": {"1": pytest.approx(0.75), "5": 0.4},
        }
    ]


def test_models_and_settings_are_kept_apart():
    every = rows("a", model="one") + rows("b", model="one") + rows("a", model="two")[1:]
    found = summarise_corruptions(every)
    assert [(one["model"], one["setting"], one["clean"]) for one in found] == [
        ("one", "a", 0.9),
        ("one", "b", 0.9),
        ("two", "a", None),
    ]
    unlabelled = [{"set": "fog-1", "setting": "a", "accuracy": None}]
    assert summarise_corruptions(unlabelled) == []


def test_errors_are_weighed_by_those_of_a_reference():
    """By definition the mean over kinds of sum of errors over sum of the reference's errors."""
    reference = [dict(row, accuracy=row["accuracy"] / 2) for row in rows("other")]
    expected = ((0.2 + 0.6) / (0.6 + 0.8) + 0.3 / 0.65) / 2
    assert mean_corruption_error(rows("a"), reference) == pytest.approx(expected)
    assert mean_corruption_error(rows("a"), rows("b")) == pytest.approx(1)
    with pytest.raises(ValueError, match="not of the same corruptions: fog-5"):
        mean_corruption_error(rows("a"), [row for row in reference if row["set"] != "fog-5"])
    with pytest.raises(ValueError, match="not of the same corruptions: there are none"):
        mean_corruption_error([], [])
    with pytest.raises(ValueError, match="no error under snow"):
        mean_corruption_error(
            rows("a"), [dict(row, accuracy=1.0 if row["set"] == "snow-1" else 0.5) for row in reference]
        )
    with pytest.raises(ValueError, match="several models or settings"):
        mean_corruption_error(rows("a") + rows("b"), reference)
