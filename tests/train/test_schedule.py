"""Learning-rate schedules at the points that define them, whatever the run's length counts."""

import math

import pytest

from packvit.train.config import TrainConfig
from packvit.train.step.length import Length
from packvit.train.step.optim import OptimConfig
from packvit.train.step.schedule import lr_factor


def by_step(step: int, steps: int, config: OptimConfig) -> float:
    return lr_factor(step, step + 1, steps, config)


def test_cosine_warms_up_peaks_and_ends_near_zero():
    config = OptimConfig(schedule="cosine", warmup=10)
    factors = [by_step(step, 110, config) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[-1] < 1e-3
    assert max(factors) == 1


def test_linear_falls_from_the_warmup_to_zero():
    config = OptimConfig(schedule="linear", warmup=10)
    assert by_step(10, 110, config) == 1
    assert by_step(35, 110, config) == pytest.approx(0.75)
    assert by_step(109, 110, config) == pytest.approx(0.01)


def test_rsqrt_falls_with_the_root_and_cools_down():
    config = OptimConfig(schedule="rsqrt", warmup=10, timescale=100, cooldown=100)
    assert by_step(4, 1000, config) == pytest.approx(0.5)
    assert by_step(50, 1000, config) == 1
    assert by_step(399, 1000, config) == pytest.approx(0.5)
    assert by_step(950, 1000, config) == pytest.approx(0.5 * math.sqrt(100 / 951))
    assert by_step(999, 1000, config) == pytest.approx(0.01 * math.sqrt(100 / 1000))


def test_constant_stays_and_cools_down():
    config = OptimConfig(schedule="constant", warmup=0, cooldown=20)
    assert by_step(0, 100, config) == by_step(80, 100, config) == 1
    assert by_step(90, 100, config) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "rsqrt", "constant"])
def test_counting_images_scales_with_the_images_of_a_step(schedule):
    steps = OptimConfig(schedule=schedule, warmup=10, timescale=20, cooldown=30)
    images = OptimConfig(schedule=schedule, warmup=640, timescale=1280, cooldown=1920)
    for step in range(100):
        factor = lr_factor(64 * step, 64 * step + 64, 6400, images)
        assert factor == pytest.approx(by_step(step, 100, steps))


def test_a_step_that_goes_past_the_end_stays_in_range():
    for schedule in ("cosine", "linear", "rsqrt", "constant"):
        config = OptimConfig(schedule=schedule, warmup=0, cooldown=10)  # pyright: ignore[reportArgumentType]
        assert 0 <= lr_factor(99, 140, 100, config) <= 1


def test_a_run_has_one_length():
    assert TrainConfig(steps=7).length == Length("step", 7)
    assert TrainConfig(images=70).length == Length("images_seen", 70)
    assert TrainConfig(tokens=700).length == Length("tokens_seen", 700)
    assert TrainConfig(gflops=70).length == Length("gflops_seen", 70)
    with pytest.raises(ValueError, match="can be the run's length"):
        TrainConfig(images=1, tokens=1)
