"""Evaluators against their definitions."""

import pytest
import torch

from packvit.evaluate import expected_calibration_error


def test_calibration_error_of_known_cases():
    sure = torch.full((10,), 0.999)
    all_right, all_wrong = torch.ones(10, dtype=torch.bool), torch.zeros(10, dtype=torch.bool)
    assert expected_calibration_error(sure, all_right) == pytest.approx(0.001, abs=1e-6)
    assert expected_calibration_error(sure, all_wrong) == pytest.approx(0.999)
    half = torch.tensor([0.5] * 4 + [0.9] * 4)
    correct = torch.tensor([True, True, False, False, True, True, True, False])
    assert expected_calibration_error(half, correct) == pytest.approx(0.5 * 0 + 0.5 * 0.15)
