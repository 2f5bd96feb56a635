"""Measures against their definitions, and laws that hold whatever a model answers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packvit.evaluate.measures.accuracy import class_accuracy, label_ranks, wilson_interval
from packvit.evaluate.measures.calibration import (
    brier_score,
    confidences,
    expected_calibration_error,
    fit_temperature,
    in_fit_half,
    negative_log_likelihood,
)
from packvit.evaluate.measures.classification import VALUES, measure_setting

KINDS = ["softmax", "sigmoid"]


def draw(seed: int, images: int = 50, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator)
    return logits, torch.randint(classes, (images,), generator=generator)


def sample(logits: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Labels that softmax(logits) is the truth about."""
    return torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(seed))[:, 0]


def by_hand(logits: torch.Tensor, labels: torch.Tensor, loss: str) -> tuple[list[float], list[float]]:
    """Negative log-likelihood and Brier score of each image, written out."""
    likelihoods, scores = [], []
    for z, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if loss == "softmax":
            total = sum(math.exp(value) for value in z)
            p = [math.exp(value) / total for value in z]
            likelihoods.append(-math.log(p[label]))
        else:
            p = [1 / (1 + math.exp(-value)) for value in z]
            likelihoods.append(-sum(math.log(q if c == label else 1 - q) for c, q in enumerate(p)))
        scores.append(sum((q - (c == label)) ** 2 for c, q in enumerate(p)))
    return likelihoods, scores


@pytest.mark.parametrize("loss", KINDS)
def test_likelihood_and_brier_score_are_those_written_out(loss, monkeypatch):
    monkeypatch.setattr("packvit.evaluate.measures.calibration.BLOCK", 40)  # five images at a time
    logits, labels = draw(0)
    likelihoods, scores = by_hand(logits, labels, loss)
    assert negative_log_likelihood(logits, labels, loss).tolist() == pytest.approx(likelihoods, abs=1e-12)
    assert brier_score(logits, labels, loss).tolist() == pytest.approx(scores, abs=1e-12)
    warm, _ = by_hand(logits.double() / 1.7, labels, loss)
    assert negative_log_likelihood(logits, labels, loss, 1.7).tolist() == pytest.approx(warm, abs=1e-12)


def test_confidence_is_that_of_the_predicted_class():
    logits = torch.tensor([[0.0, math.log(3)]])
    prediction = torch.tensor([1])
    assert confidences(logits, prediction, "softmax").item() == pytest.approx(0.75)
    assert confidences(logits, prediction, "sigmoid").item() == pytest.approx(0.75)
    assert confidences(2 * logits, prediction, "softmax", 2.0).item() == pytest.approx(0.75)
    three = torch.tensor([[0.0, math.log(3), math.log(4)]])
    assert confidences(three, torch.tensor([2]), "softmax").item() == pytest.approx(0.5)
    assert confidences(three, torch.tensor([2]), "sigmoid").item() == pytest.approx(0.8)


def test_calibration_error_of_known_cases():
    sure = torch.full((10,), 0.999)
    all_right, all_wrong = torch.ones(10, dtype=torch.bool), torch.zeros(10, dtype=torch.bool)
    assert expected_calibration_error(sure, all_right) == pytest.approx(0.001, abs=1e-6)
    assert expected_calibration_error(sure, all_wrong) == pytest.approx(0.999)
    half = torch.tensor([0.5] * 4 + [0.9] * 4)
    correct = torch.tensor([True, True, False, False, True, True, True, False])
    assert expected_calibration_error(half, correct) == pytest.approx(0.5 * 0 + 0.5 * 0.15)
    # One bin sees that they are right about as often as they believe; thirty see that no group is.
    mixed, right = torch.tensor([0.25, 0.75]), torch.tensor([True, False])
    assert expected_calibration_error(mixed, right, bins=1) == 0
    assert expected_calibration_error(mixed, right) == pytest.approx(0.75)
    assert math.isnan(expected_calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool)))


def test_answers_that_say_the_truth_are_calibrated_and_others_are_not():
    logits, _ = draw(1, 20_000)
    labels, predictions = sample(logits), logits.argmax(1)
    correct = predictions == labels
    honest = expected_calibration_error(confidences(logits, predictions, "softmax"), correct)
    boastful = expected_calibration_error(confidences(3 * logits, predictions, "softmax"), correct)
    assert honest < 0.02
    assert boastful > 0.1


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.5])
def test_a_planted_temperature_comes_back(planted):
    logits, _ = draw(2, 20_000)
    labels = sample(logits)
    assert fit_temperature(planted * logits, labels, "softmax") == pytest.approx(planted, rel=0.04)


@pytest.mark.parametrize("loss", KINDS)
def test_no_temperature_is_better_than_the_one_that_was_fitted(loss, monkeypatch):
    monkeypatch.setattr("packvit.evaluate.measures.calibration.BLOCK", 100)
    logits, labels = draw(3, 300)
    fitted = fit_temperature(logits, labels, loss)
    grid = np.geomspace(0.01, 100, 400)
    losses = [negative_log_likelihood(logits, labels, loss, t).mean().item() for t in grid]
    assert negative_log_likelihood(logits, labels, loss, fitted).mean().item() <= min(losses) + 1e-12


def test_temperatures_stay_in_their_bounds():
    logits, _ = draw(4)
    assert fit_temperature(10 * logits, logits.argmax(1), "softmax") == 0.01
    assert fit_temperature(logits, logits.argmin(1), "softmax") == 100
    assert math.isnan(fit_temperature(logits[:0], torch.zeros(0, dtype=torch.int64), "softmax"))
    assert math.isnan(fit_temperature(logits * math.nan, logits.argmax(1), "softmax"))


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_of_known_cases(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5.1e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share_and_mirrors(counts):
    correct, total = counts
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total + 1e-12
    assert correct / total - 1e-12 <= high <= 1
    assert wilson_interval(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=20), st.data())
def test_ranks_count_the_classes_before_the_label(rows, data):
    """Equal logits stand in the order of the classes."""
    logits = torch.tensor(rows, dtype=torch.float32)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=len(rows), max_size=len(rows))))
    order = logits.argsort(dim=1, descending=True, stable=True)
    expected = (order == labels[:, None]).int().argmax(1)
    assert torch.equal(label_ranks(logits, labels), expected)
    assert torch.equal(label_ranks(logits, labels) == 0, logits.argmax(1) == labels)


def test_classes_without_images_have_no_accuracy():
    correct = torch.tensor([True, False, True, True])
    assert class_accuracy(correct, torch.tensor([0, 0, 2, 2]), 4) == [0.5, None, 1.0, None]


def test_the_half_for_fitting_depends_on_the_key_alone():
    keys = [f"cat/{i}" for i in range(1000)]
    half = in_fit_half(keys)
    assert 400 < half.sum() < 600
    assert torch.equal(in_fit_half(keys[::-1]), half.flip(0))


@pytest.mark.parametrize("loss", KINDS)
def test_a_setting_is_measured_on_the_images_with_labels(loss):
    logits, _ = draw(5, 400)
    labels = sample(logits)
    half = in_fit_half([str(i) for i in range(400)])
    values, prediction, confidence = measure_setting(logits, labels, half, loss)
    assert list(values) == list(VALUES)
    assert values["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    top = logits.topk(5).indices
    assert values["top5"] == pytest.approx((top == labels[:, None]).any(1).double().mean().item())
    assert torch.equal(prediction, logits.argmax(1))
    t, other = values["temperature"], ~half
    assert t == fit_temperature(logits[half], labels[half], loss)
    assert isinstance(t, float)
    assert values["nll_calibrated"] == pytest.approx(
        negative_log_likelihood(logits[other] / t, labels[other], loss).mean().item(), rel=1e-5
    )
    scaled = confidences(logits, prediction, loss, t)
    torch.testing.assert_close(confidence.double(), scaled, rtol=1e-6, atol=0)
    # A temperature moves no prediction.
    again = measure_setting(logits / 3, labels, half, loss).values
    assert again["accuracy"] == values["accuracy"]
    assert again["temperature"] == pytest.approx(t / 3, rel=1e-3)
    # What has no label counts for nothing, and still gets an answer.
    more = torch.cat([logits, torch.randn(9, 7)])
    unknown = torch.cat([labels, torch.full((9,), -1)])
    found = measure_setting(more, unknown, torch.cat([half, torch.ones(9, dtype=torch.bool)]), loss)
    assert found.values == values
    assert len(found.prediction) == 409


def test_values_that_do_not_exist_are_none_or_nan():
    logits, labels = draw(6, 4, 3)
    all_fit = torch.ones(4, dtype=torch.bool)
    values = measure_setting(logits, labels, all_fit, "softmax").values
    assert values["top5"] is None
    assert math.isnan(values["nll_calibrated"])  # pyright: ignore[reportArgumentType]
    assert math.isnan(values["ece_calibrated"])  # pyright: ignore[reportArgumentType]
