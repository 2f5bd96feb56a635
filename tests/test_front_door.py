"""What people meet first: the names of `packvit`, its help, training from Python, a run's first lines."""

import json
import subprocess
import sys
from typing import Any

import pytest

import packvit
from packvit.cli import dispatch
from packvit.models import PackedViT

TINY = {"width": 32, "depth": 1, "heads": 2}
RUN: dict[str, Any] = {
    "data": {"workers": 0, "streams": 2},
    "packing": {"seq_len": 64, "sequences": 2, "lookahead": 16},
    "train": {"steps": 3, "precision": "fp32"},
    "model": TINY,
}


def test_neither_importing_nor_help_loads_torch():
    program = """
import sys, packvit
from packvit.cli import dispatch
assert packvit.__version__ and set(packvit.__all__) <= set(dir(packvit))
assert dispatch(["--help"]) == dispatch(["--version"]) == 0
heavy = {"torch", "numpy", "PIL", "tyro"} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"packvit {packvit.__version__}" in done.stdout


@pytest.mark.parametrize("name", [name for name in packvit.__all__ if name != "__version__"])
def test_public_names_are_there(name):
    assert callable(getattr(packvit, name))


def test_output_that_nobody_reads_ends_quietly():
    command = [sys.executable, "-c", "from packvit.cli import main; main()", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate()
    assert process.returncode == 141
    assert error == b""


def test_a_run_from_python_gives_model_history_and_folder(tmp_path, digits_set, capsys):
    options: dict[str, Any] = RUN | {"data": {**RUN["data"], "shards": [str(digits_set / "train")]}}
    done = packvit.train("digits", run_dir=tmp_path / "run", **options)
    assert isinstance(done.model, PackedViT)
    assert done.model.config.width == 32
    assert not done.model.training
    assert done.history[-1]["step"] == 3
    assert done.folder == tmp_path / "run"
    said = capsys.readouterr().out
    for line in (
        "Model: ViT of width 32, depth 1",
        "Weights: new, seed 0",
        "Device: 1 x ",
        "Step: 128 tokens",
    ):
        assert line in said
    assert [f"step {number}  loss" in said for number in (1, 2, 3)] == [True] * 3
    options["train"] = {"steps": 4, "precision": "fp32"}
    again = packvit.train("digits", run_dir=tmp_path / "run", **options)
    assert [line["step"] for line in again.history] == [3, 4]
    assert "Weights: those of step 3" in capsys.readouterr().out
    assert packvit.recipes()["digits"].startswith("The demo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"stepz": 3}}, r"train\.stepz is not a field"),
        ({"steps": 3}, r"steps is not a field"),
        ({"train": 3}, r"train is a section"),
        ({"train": {"steps": "many"}}, r"steps"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        packvit.train("digits", **changes)


def test_a_dry_run_leaves_nothing_behind(tmp_path, digits_set, capsys):
    flags = ["--run-dir", str(tmp_path / "run"), "--data.shards", str(digits_set / "train"), "--dry-run"]
    flags += ["--data.workers=0", "--data.streams=2", "--packing.seq-len=64", "--packing.sequences=2"]
    flags += [f"--model.{name}={value}" for name, value in TINY.items()]
    assert dispatch(["train", "digits", *flags, "--train.images", "1000"]) == 0
    said = capsys.readouterr().out
    assert "time of the run on this device" in said
    assert "padding" in said
    assert list(tmp_path.iterdir()) == []


def test_classes_are_those_of_the_shards_unless_given(tmp_path, digits_set, capsys):
    flags = ["--data.shards", str(digits_set / "train"), "--data.workers=0", "--data.streams=2"]
    flags += [*(f"--model.{name}={value}" for name, value in TINY.items()), "--train.steps=1"]
    flags += ["--packing.seq-len=64", "--packing.sequences=2"]
    assert dispatch(["train", "navit_b16", "--run-dir", str(tmp_path / "a"), *flags]) == 0
    assert "model.num_classes=10, from" in capsys.readouterr().out
    assert json.loads((tmp_path / "a/config.json").read_text())["num_classes"] == 10
    given = ["--model.num-classes", "12"]
    assert dispatch(["train", "navit_b16", "--run-dir", str(tmp_path / "b"), *flags, *given]) == 0
    assert json.loads((tmp_path / "b/config.json").read_text())["num_classes"] == 12
