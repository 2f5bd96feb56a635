"""packvit.evaluate: the same as the command, from Python."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import packvit
from packvit.cli import dispatch
from packvit.models import PackedViT, ViTConfig, save_model
from packvit.train.api import Trained

GRID: dict[str, Any] = {"shards": "x", "resolutions": 16, "patch_sizes": 8}
QUICK: dict[str, Any] = {"device": "cpu", "workers": 0, "cost": False, "quiet": True}


@pytest.fixture(scope="module")
def model() -> PackedViT:
    torch.manual_seed(0)
    model = PackedViT(ViTConfig(width=32, depth=1, heads=2, num_classes=10))
    assert model.head is not None
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture(scope="module")
def run(model, digits_set, tmp_path_factory) -> Path:
    """A run's folder, as far as evaluation looks at it."""
    folder = save_model(model, tmp_path_factory.mktemp("run") / "run")
    values = {
        "data": {"val_shards": [str(digits_set / "val")]},
        "views": {"patch_sizes": [4, 8], "resolution": {"low": 16, "high": 16}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_run_is_evaluated_as_the_command_does(run, tmp_path, capsys):
    found = packvit.evaluate(run, **QUICK)
    assert capsys.readouterr().out == ""
    assert found.folder == run / "eval"
    assert found.rows == json.loads((run / "eval/results.json").read_text())["rows"]
    assert [row["setting"] for row in found.rows] == ["r16-p4", "r16-p8"]
    out = tmp_path / "out"
    assert dispatch(["eval", str(run), "--device=cpu", "--workers=0", "--no-cost", "--out", str(out)]) == 0
    assert (out / "results.json").read_text() == (run / "eval/results.json").read_text()
    again = packvit.evaluate(str(run), resolutions=24, tokens=[9], corruptions="contrast:2", **QUICK)
    assert [row["setting"] for row in again.rows if row["set"] == "main"][:2] == ["r24-p4", "r24-p8"]
    assert {row["set"] for row in again.rows} == {"main", "contrast-2"}
    best = max(row["accuracy"] for row in again.rows if row["set"] == "main")
    assert again.best["accuracy"] == best
    assert f"best {again.best['setting']}: {best:.1%} accuracy" in repr(again)
    assert (run / "eval-1/results.json").exists()


def test_a_plan_of_the_results_is_one_for_the_predictor(run, tmp_path):
    found = packvit.evaluate(run, out=tmp_path, **QUICK)
    plan = found.plan(max_tokens=4, stages=1)
    assert [stage.setting.name for stage in plan.stages] == ["r16-p8"]
    assert packvit.Predictor(run, plan=plan).choice.stages == plan.stages
    with pytest.raises(ValueError, match="max-tokens and max-ms: give one of them"):
        found.plan(max_tokens=4, max_ms=1)


def test_models_in_memory_come_back_as_they_were(model, run, digits_set, tmp_path):
    shards = digits_set / "val"
    asked: dict[str, Any] = {"patch_sizes": [8], "resolutions": [16], "out": tmp_path / "one", **QUICK}
    model.train()
    alone = packvit.evaluate(model, shards, **asked)
    assert model.training
    assert alone.rows == packvit.evaluate(run, shards, **asked).rows
    both = packvit.evaluate([model, Trained(model, [], run)], [shards], **asked, sets={"other": shards})
    assert [(row["model"], row["set"]) for row in both.rows] == [
        ("model", "main"), ("model", "other"), ("run", "main"), ("run", "other"),
    ]  # fmt: skip
    both.plan(model="run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": [3]}, r"int is not a model: give a path, a run or a PackedViT"),
        ({"resolution": 16}, r"resolution is not an option: there are "),
        ({"resolutions": 0}, r"resolutions: every value must be at least 1, not 0"),
        ({"patch_sizes": [1.5]}, r"patch_sizes=\[1\.5\] must be a whole number"),
        ({"device": "gpu"}, r"device='gpu' is not one of auto, cpu, cuda"),
        ({"sets": {"a/b": "x"}, **GRID}, r"'a/b' cannot name a set"),
        ({"label_map": {"a": "x.json"}}, r"'a' is not one of the sets \(no set\)"),
        ({"out": None}, r"a model in memory has no folder for the results: name one with out"),
        ({}, r"there are no shards to evaluate on"),
    ],
)
def test_mistakes_are_named(model, tmp_path, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        packvit.evaluate(**{"models": model, "out": tmp_path / "out", **options})
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_configuration_is_wrong_names_the_file(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    for text in ("{", "[1]", "views: {patch_size: 3}"):
        (other / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"run/config\.yaml"):
            packvit.evaluate(other, loss="softmax", out=tmp_path / "out", **QUICK)


def test_the_module_has_the_signature_of_the_function():
    assert next(iter(inspect.signature(packvit.evaluate).parameters)) == "models"
