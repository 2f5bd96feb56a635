"""The peak of a device: stated, known by its name, or unknown."""

import pytest
import torch

from packvit.train.watch.peak import peak_tflops


def test_a_peak_is_stated_or_unknown_on_a_cpu():
    assert peak_tflops(torch.device("cpu"), None) is None
    assert peak_tflops(torch.device("cpu"), 0.5) == 0.5


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA GB200", 2500), ("Other", None)]
)
def test_a_peak_belongs_to_the_whole_name_of_a_device(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda"), None) == peak
