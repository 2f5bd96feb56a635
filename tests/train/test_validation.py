"""Validation during training: what it measures, the best model, an early end, a run that stays the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro
from torch import nn

from packvit.cli import dispatch
from packvit.common.json_lines import read_json_lines
from packvit.data import EvalSet
from packvit.evaluate import EvalConfig, Setting, find_run_config
from packvit.models import load_model
from packvit.train.config import Config
from packvit.train.recipes.find import find_recipe
from packvit.train.run import run
from packvit.train.validate.best import BestModel
from packvit.train.validate.settings import eval_settings, validation_settings
from packvit.train.validate.validation import evaluating

VALIDATE = {"eval__every": 2, "train__ema": 0.5, "train__checkpoint_every": 3}


@pytest.fixture(scope="module")
def flags(run_flags, digits_set):
    def make(run_dir: Path, **changes) -> list[str]:
        changes = {"data__val_shards": digits_set / "val", "data__workers": 0, **VALIDATE, **changes}
        arguments = [*run_flags(run_dir, **changes), "--eval.resolutions", "24", "32", "--eval.no-cost"]
        return [*arguments, "--eval.patch-sizes", "8", "16", "--data.audit"]

    return make


@pytest.fixture(scope="module")
def train_only(flags):
    """Train without the evaluation and the pictures at the end."""

    def train(run_dir: Path, **changes) -> None:
        recipe, *arguments = flags(run_dir, **changes)
        run(tyro.cli(Config, default=find_recipe(recipe), args=arguments), measure=False)

    return train


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "digits"
    assert dispatch(["train", *flags(run_dir)]) == 0
    return run_dir


def validated(run_dir: Path) -> dict[int, dict]:
    """What metrics.jsonl has of each validation, by step."""
    lines = read_json_lines(run_dir / "metrics.jsonl")
    return {line["step"]: line["validation"] for line in lines if "validation" in line}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_so_many_steps_and_the_last_are_validated_and_the_best_is_kept(finished):
    found = validated(finished)
    assert list(found) == [2, 4, 6]
    for values in found.values():
        assert list(values) == ["accuracy", "r24-p16", "r24-p8", "r32-p8"]
        each = [values[name]["accuracy"] for name in list(values)[1:]]
        assert values["accuracy"] == pytest.approx(sum(each) / 3)
        assert values["r24-p8"]["nll"] > 0
        assert "class_accuracy" not in values["r24-p8"]  # no curve shows a list
    note = json.loads((finished / "best/best.json").read_text())
    best = max(found, key=lambda step: (found[step]["accuracy"], -step))
    assert (note["step"], note["value"]) == (best, found[best]["accuracy"])
    assert note["measure"] == "accuracy"
    assert note["images"] == 30
    assert load_model(finished / "best").config == load_model(finished).config
    assert find_run_config(finished / "best") == finished.absolute() / "config.yaml"
    assert not [path for path in finished.iterdir() if path.name.startswith(".validation")]


def test_validation_measures_what_the_evaluation_of_the_same_weights_does(finished):
    rows = {row["setting"]: row for row in json.loads((finished / "eval/results.json").read_text())["rows"]}
    last = validated(finished)[6]
    for name in ("r24-p16", "r24-p8", "r32-p8"):
        assert last[name] == {measure: rows[name][measure] for measure in last[name]}


WEIGHTS = "checkpoints/step-00000006/model.safetensors"


def test_a_run_computes_the_same_with_validation_as_without(finished, train_only, tmp_path):
    train_only(tmp_path, eval__every=0, data__workers=1)
    for name in (WEIGHTS, "audit.jsonl"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    assert not (tmp_path / "best").exists()


def test_a_killed_run_has_the_same_best_model_in_the_end(finished, train_only, tmp_path):
    run_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run_dir / "checkpoints/step-00000006")  # killed before it was written
    train_only(run_dir, data__workers=1)
    assert validated(run_dir) == validated(finished)
    assert contents(run_dir / "best") == contents(finished / "best")
    assert (run_dir / WEIGHTS).read_bytes() == (finished / WEIGHTS).read_bytes()


def test_patience_ends_a_run_and_its_resumption_has_nothing_to_do(train_only, tmp_path, capsys):
    still = {"optim__lr": 1e-12, "optim__muon_lr": 1e-12, "eval__patience": 2, "train__steps": 50}
    train_only(tmp_path, **still)
    assert "Ended early, eval.patience=2: no later validation was better" in capsys.readouterr().out
    assert list(validated(tmp_path)) == [2, 4, 6]
    assert json.loads((tmp_path / "best/best.json").read_text())["step"] == 2
    train_only(tmp_path, **still)
    assert "Nothing to train: eval.patience ended the run after step 6" in capsys.readouterr().out
    # Other settings cannot be compared with the best value so far.
    train_only(tmp_path, **still | {"eval__settings": "t9-p8", "train__steps": 8})
    assert "the best value is discarded" in capsys.readouterr().out
    assert list(validated(tmp_path)) == [2, 4, 6, 8]
    assert list(validated(tmp_path)[8]) == ["accuracy", "t9-p8"]


def test_the_best_model_goes_back_with_its_run(tmp_path):
    best = BestModel(tmp_path)

    def keep(step: int) -> None:
        def save(folder: Path) -> None:
            (folder / "weights").write_text(str(step))

        best.replace({"step": step}, save)

    def kept() -> str | None:
        path = tmp_path / "best/weights"
        return path.read_text() if path.exists() else None

    keep(2)
    assert kept() == "2"
    best.go_back(0)  # there is no checkpoint
    assert kept() is None
    keep(2)
    (tmp_path / "checkpoints/step-00000003").mkdir(parents=True)
    for step in (4, 6, 8):
        keep(step)
        assert kept() == str(step)
    best.go_back(8)
    assert kept() == "8"
    best.go_back(3)
    assert kept() == "2"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["best", "checkpoints"]
    (tmp_path / "best/best.json").write_text("{}")
    with pytest.raises(ValueError, match=r"best\.json is damaged"):
        best.go_back(3)


def test_three_settings_of_few_middling_and_many_tokens_are_taken():
    def names(**fields) -> list[str]:
        return [setting.name for setting in validation_settings(Config(eval=EvalConfig(**fields)))]

    assert names(resolutions=(240,), patch_sizes=(48, 40, 30, 24, 20, 16, 15, 12, 10, 8)) == [
        "r240-p40",
        "r240-p16",
        "r240-p10",
    ]
    assert names(resolutions=(32,), patch_sizes=(8,)) == ["r32-p8"]
    assert names(resolutions=(32, 16), patch_sizes=(8,)) == ["r16-p8", "r32-p8"]
    assert names(settings=("t64-p16", "r96-p8")) == ["t64-p16", "r96-p8"]
    assert set(validation_settings(Config())) <= set(eval_settings(Config()))


def test_some_images_are_spread_over_the_set(digits_set):
    images = EvalSet(str(digits_set / "val"))
    keys = [header.key for header in images.headers]
    assert [header.key for header in images.some(4).headers] == [keys[0], keys[7], keys[15], keys[22]]
    assert len(images.headers) == 30
    for number in (0, 30, 31):
        assert images.some(number) is images


def test_parts_keep_their_modes():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False]


def test_what_cannot_be_is_refused(flags, tmp_path, capsys, digits_set, run_flags):
    with pytest.raises(ValueError, match=r"eval\.patience=2 counts validations"):
        EvalConfig(patience=2)
    with pytest.raises(ValueError, match=r"eval\.every=-1 must not be negative"):
        EvalConfig(every=-1)
    with pytest.raises(ValueError, match="'r24' is not a setting"):
        EvalConfig(settings=("r24",))
    assert dispatch(["train", *run_flags(tmp_path, eval__every=2)]) == 2
    assert "eval.every=2 needs images to validate on: add --data.val-shards" in capsys.readouterr().err
    assert dispatch(["train", *flags(tmp_path, eval__settings="r1000000-p8")]) == 2
    assert "too many for the" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "parallel"), [(2, "fsdp"), (3, "ddp")])
def test_ranks_validate_together(flags, digits_set, tmp_path, ranks, parallel):
    """With a moving average, processes that decode, and checkpoints in the background."""
    changes = {"data__workers": 1, "data__streams": 6, "train__parallel": parallel, "train__steps": 4}
    changes |= {"train__checkpoint_every": 1, "eval__settings": "r24-p8", "train__keep_checkpoints": 9}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "packvit.train", *flags(tmp_path, **changes), "--train.async-checkpoints"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = validated(tmp_path)
    assert list(found) == [2, 4]
    step = json.loads((tmp_path / "best/best.json").read_text())["step"]
    best, saved = (load_model(tmp_path / f).state_dict() for f in ("best", f"checkpoints/step-{step:08d}"))
    assert all(torch.equal(tensor, saved[name]) for name, tensor in best.items())
    # One process finds the same of the same weights.
    arguments = [
        "--resolutions",
        "24",
        "--patch-sizes",
        "8",
        "--workers",
        "0",
        "--no-cost",
        "--seq-len",
        "64",
    ]
    arguments += ["--precision", "bf16", "--out", str(tmp_path / "out")]
    assert dispatch(["eval", str(tmp_path / "best"), *arguments]) == 0
    [row] = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    values = found[step][Setting(8, 24).name]
    assert {name: row[name] for name in ("accuracy", "nll")} == pytest.approx(
        {name: values[name] for name in ("accuracy", "nll")}, rel=1e-3
    )
