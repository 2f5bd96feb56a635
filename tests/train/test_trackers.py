"""Trackers: what TensorBoard reads back, and what is called of Weights & Biases."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from packvit.cli import dispatch
from packvit.common.json_lines import read_json_lines
from packvit.train.config import Config, TrainConfig, load_config
from packvit.train.watch.trackers import Trackers, flat_numbers

LINE = {"step": 3, "loss": 1.5, "mfu": None, "loss_by_patch_size": {"8": 1.0, "16": 2.0}}


def test_groups_become_names_and_the_unknown_is_left_out():
    assert flat_numbers(LINE) == {"loss": 1.5, "loss_by_patch_size/8": 1.0, "loss_by_patch_size/16": 2.0}


def read_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_a_run_and_its_resumption_are_one_curve_in_tensorboard(run_flags, digits_set, tmp_path):
    flags = run_flags(tmp_path, data__workers=0, train__trackers="tensorboard")
    val = [
        "--data.val-shards",
        str(digits_set / "val"),
        "--eval.resolutions",
        "32",
        "--eval.patch-sizes",
        "8",
        "--eval.every",
        "5",
    ]
    assert dispatch(["train", *flags, "--train.steps", "4"]) == 0
    # As if it had been killed after step 4, with a checkpoint of step 3.
    last = tmp_path / "checkpoints/step-00000004"
    last.rename(tmp_path / "gone")
    assert dispatch(["train", *flags, *val]) == 0
    assert load_config(tmp_path / "config.yaml").train.trackers == ("tensorboard",)
    events = read_events(tmp_path / "tensorboard")
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(
        [line["loss"] for line in lines]
    )
    assert {f"loss_by_patch_size/{p}" for p in lines[-1]["loss_by_patch_size"]} <= set(
        events.Tags()["scalars"]
    )
    # What curves there are, TensorBoard draws.
    assert set(events.Tags()["images"]) == {"samples", "accuracy"}
    [row] = json.loads((tmp_path / "eval/results.json").read_text())["rows"]
    [final] = events.Scalars("eval/r32-p8/accuracy")
    assert (final.step, final.value) == (6, pytest.approx(row["accuracy"]))
    validated = [line["validation"]["accuracy"] for line in lines if "validation" in line]
    found = events.Scalars("validation/accuracy")
    assert [event.step for event in found] == [5, 6]
    assert [event.value for event in found] == pytest.approx(validated)
    assert [image.step for image in events.Images("accuracy")] == [6]


class FakeRun:
    """What of a run of wandb is used."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.logged: list[dict] = []
        self.exit_code: int | None = None
        self.axis = ""

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axis = f"{name} by {step_metric}"

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch) -> SimpleNamespace:
    """A module in wandb's place; `runs` are those that were started."""
    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        runs.append(FakeRun(settings))
        return runs[-1]

    module = SimpleNamespace(runs=runs, init=init, Image=lambda path: f"image {path}", Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def test_weights_and_biases_go_on_with_the_same_run(wandb, tmp_path):
    config = Config(run_dir=tmp_path, train=TrainConfig(trackers=("wandb",)))
    picture = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(picture)
    with Trackers() as trackers:
        trackers.start(config, 0)
        trackers.log(LINE)
        trackers.image(3, "a", picture)
        trackers.image(3, "b", tmp_path / "not-drawn.png")
    failing = Trackers()
    failing.start(config, 3)
    failing.__exit__(KeyError)
    first, second = wandb.runs
    assert first.logged == [flat_numbers(LINE) | {"step": 3}, {"a": f"image {picture}", "step": 3}]
    assert first.axis == "* by step"
    assert (first.exit_code, second.exit_code) == (0, 1)
    assert first.settings["id"] == second.settings["id"]
    assert first.settings["resume"] == "allow"
    assert first.settings["project"] == "packvit"
    assert json.dumps(first.settings["config"])


def test_what_cannot_be_used_is_named(wandb, monkeypatch, tmp_path):
    def refuse(**settings: Any) -> None:
        raise wandb.Error("no login")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match="wandb, which did not start: no login"):
        Trackers().start(Config(run_dir=tmp_path, train=TrainConfig(trackers=("wandb",))), 0)
    missing: list[tuple[str, Any, str]] = [
        ("wandb", ("wandb",), r"packvit\[wandb\]"),
        ("torch.utils.tensorboard", ("tensorboard",), r"packvit\[log\]"),
    ]
    for module, names, extra in missing:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=extra):
            Trackers().start(Config(run_dir=tmp_path, train=TrainConfig(trackers=names)), 0)
