"""The fitted latency: the solver against one that tries every set of columns, and what is recovered."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.evaluate.plan.latency import (
    Sample,
    fit_latency,
    nominal_tokens,
    parts,
    solve_nonnegative,
)
from packvit.evaluate.setting import Setting
from packvit.models import ViTConfig

CONFIG = ViTConfig(width=32, depth=1, heads=2, patch_buffer=16)
SIZES = [(n, p) for n in (4, 16, 36, 64, 144) for p in (8, 12, 16)]
WEIGHTS = np.array([1.0, 1e-2, 2e-5, 3e-6, 1e-5, 0.1])
VALUES = st.integers(-3, 3)


@st.composite
def systems(draw):
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    matrix = [draw(st.lists(VALUES, min_size=columns, max_size=columns)) for _ in range(rows)]
    return np.array(matrix, float), np.array(draw(st.lists(VALUES, min_size=rows, max_size=rows)), float)


@given(systems())
def test_the_solver_is_as_good_as_trying_every_set_of_columns(system):
    matrix, target = system
    best = np.linalg.norm(target)
    for number in range(1, matrix.shape[1] + 1):
        for columns in combinations(range(matrix.shape[1]), number):
            x = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
            if (x >= 0).all():
                best = min(best, np.linalg.norm(matrix[:, columns] @ x - target))
    found = solve_nonnegative(matrix, target)
    assert (found >= 0).all()
    assert np.linalg.norm(matrix @ found - target) == pytest.approx(best, abs=1e-7)


def planted(noise: float = 0.0) -> list[Sample]:
    rng = np.random.default_rng(0)
    exact = [Sample(n, p, float(parts(CONFIG, n, p) @ WEIGHTS)) for n, p in SIZES]
    return [Sample(s.tokens, s.patch_size, s.ms * float(np.exp(rng.normal(0, noise)))) for s in exact]


def test_planted_weights_come_back_and_predict_what_was_not_measured():
    model = fit_latency(planted(), CONFIG)
    assert model.weights == pytest.approx(WEIGHTS, rel=1e-4)
    assert model.errors.max() < 1e-6
    assert model.predict(100, 10) == pytest.approx(float(parts(CONFIG, 100, 10) @ WEIGHTS), rel=1e-6)
    assert model.tokens == (4, 144)


def test_errors_are_those_of_a_fit_without_the_setting():
    samples = planted(noise=0.1)
    model = fit_latency(samples, CONFIG)
    for index, sample in enumerate(samples):
        without = fit_latency([s for s in samples if s is not sample], CONFIG)
        predicted = without.predict(sample.tokens, sample.patch_size)
        assert model.errors[index] == pytest.approx(abs(predicted / sample.ms - 1))
    assert 0.01 < np.median(model.errors) < 0.3


def test_milliseconds_and_seconds_give_the_same_fit():
    samples = planted(noise=0.1)
    model = fit_latency(samples, CONFIG)
    seconds = fit_latency([Sample(s.tokens, s.patch_size, s.ms / 1000) for s in samples], CONFIG)
    assert seconds.errors == pytest.approx(model.errors, abs=1e-6)
    assert seconds.predict(50, 8) == pytest.approx(model.predict(50, 8) / 1000, rel=1e-6)


def test_nothing_is_resized_at_the_stored_size_and_prefix_tokens_count():
    assert parts(CONFIG, 9, 16)[4:].tolist() == [0, 0]
    assert parts(CONFIG, 9, 8)[4:].tolist() == [8 * 16 * 24, 1]
    config = ViTConfig(width=32, depth=1, heads=2, cls=True, registers=2)
    assert parts(config, 9, 8)[:4].tolist() == [1, 12, 144, 9 * 64]


@pytest.mark.parametrize(
    ("samples", "what"),
    [(planted()[:5], "at least 6"), ([*planted(), Sample(4, 8, 0.0)], "not above 0")],
)
def test_too_little_to_fit_is_refused(samples, what):
    with pytest.raises(ValueError, match=what):
        fit_latency(samples, CONFIG)


def test_tokens_of_a_setting_that_was_not_measured():
    assert nominal_tokens(Setting(8, 96)) == 144
    assert nominal_tokens(Setting(8, tokens=100)) == 100
    assert nominal_tokens(Setting(16, 224, protocol="crop:0.875")) == 196
