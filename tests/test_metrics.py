"""Metrics: rates of a window and files that survive a kill."""

import json

import pytest
import torch

from packvit.packing import BatchStats
from packvit.train.distributed import Ranks
from packvit.train.metrics import JsonLines, Window, peak_tflops, read_json_lines

ALONE = Ranks(0, 1, torch.device("cpu"))


def test_a_window_gives_means_over_images_and_slots():
    window = Window()
    window.add_batch(BatchStats(images=3, tokens=30, slots=40, sequences=2, squared_lengths=300), 1e9, 0.0)
    window.add_batch(BatchStats(images=1, tokens=38, slots=40, sequences=2, squared_lengths=1444), 1e9, 0.0)
    window.add_loss(torch.tensor(3.0), 3)
    window.add_loss(torch.tensor(5.0), 1)
    summary = window.summary(ALONE, peak=None)
    assert summary["loss"] == pytest.approx(2.0)
    assert summary["padding_fraction"] == pytest.approx(12 / 80)
    assert summary["images_per_sequence"] == pytest.approx(1.0)
    assert summary["mfu"] is None
    assert summary["tokens_per_s"] / summary["images_per_s"] == pytest.approx(17)


def test_a_window_without_a_counted_step_has_no_loss():
    window = Window()
    window.add_batch(BatchStats(images=3, tokens=30, slots=40, sequences=2, squared_lengths=300), 1e9, 0.0)
    assert window.summary(ALONE, peak=None)["loss"] is None


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, 0)
    for step in range(1, 6):
        log.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    JsonLines(path, 3).write({"step": 4, "again": True})
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        JsonLines(path, 3)


def test_other_ranks_write_nothing(tmp_path):
    JsonLines(tmp_path / "metrics.jsonl", 0, write=False).write({"step": 1})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_peak_is_stated_or_unknown_on_a_cpu():
    assert peak_tflops(torch.device("cpu"), None) is None
    assert peak_tflops(torch.device("cpu"), 0.5) == 0.5


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA GB200", 2500), ("Other", None)]
)
def test_a_peak_belongs_to_the_whole_name_of_a_device(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda"), None) == peak


def test_lines_are_json(tmp_path):
    JsonLines(tmp_path / "a.jsonl", 0).write({"step": 1, "x": None})
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"step": 1, "x": None}
