"""Learning-rate schedules at the points that define them."""

import math

import pytest

from packvit.train.config import OptimConfig
from packvit.train.schedule import lr_factor


def test_cosine_warms_up_peaks_and_ends_near_zero():
    config = OptimConfig(schedule="cosine", warmup_steps=10)
    factors = [lr_factor(step, 110, config) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[-1] < 1e-3
    assert max(factors) == 1


def test_rsqrt_falls_with_the_root_and_cools_down():
    config = OptimConfig(schedule="rsqrt", warmup_steps=10, rsqrt_timescale=100, cooldown_steps=100)
    assert lr_factor(4, 1000, config) == pytest.approx(0.5)
    assert lr_factor(50, 1000, config) == 1
    assert lr_factor(399, 1000, config) == pytest.approx(0.5)
    assert lr_factor(950, 1000, config) == pytest.approx(0.5 * math.sqrt(100 / 951))
    assert lr_factor(999, 1000, config) == pytest.approx(0.01 * math.sqrt(100 / 1000))
