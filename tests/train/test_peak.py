"""The peak of a device: stated, known by its name, or unknown."""

import pytest
import torch

from packvit.train.watch.peak import find_peaks, measure_tflops, peak_tflops


def test_a_peak_is_stated_or_unknown_on_a_cpu():
    assert peak_tflops(torch.device("cpu"), None) is None
    assert find_peaks(torch.device("cpu"), 0.5) == (0.5, None)
    assert 1e-6 < measure_tflops(torch.device("cpu"), 64, 2) < 1000


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA GB200", 2500), ("Other", None)]
)
def test_a_peak_belongs_to_the_whole_name_of_a_device(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda"), None) == peak
