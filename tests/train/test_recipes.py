"""Every recipe runs, and starts with the weights that it is given."""

import json

import pytest
import torch

from packvit.cli import dispatch
from packvit.cli.train import Start, read_start
from packvit.models import PackedViT, load_model, save_model
from packvit.models.presets import preset
from packvit.train.config import load_config
from packvit.train.recipes.find import RECIPES, find_recipe, start_with

TINY = {"width": 32, "depth": 2, "heads": 2}
TRANSFERS = ("finetune", "fast_transfer", "linear_probe")  # take the architecture of a model
# Flags that a recipe cannot run without; MODEL is a small model.
FLAGS = {
    "digits_distill": "--distill.teachers MODEL",
    "flexivit_s_i1k_distill": "--model MODEL --distill.teachers MODEL",
    "flexivit_b_i1k_distill": "--model MODEL --distill.teachers MODEL",
    **dict.fromkeys(TRANSFERS, "--model MODEL"),
}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    model = PackedViT(preset("Ti", **TINY, num_classes=10, patch_buffer=16))
    assert model.head is not None
    torch.nn.init.normal_(model.head.weight)
    save_model(model, path)
    return path


def small(run_dir, digits_set, **changes):
    flags = {
        "run-dir": run_dir,
        "data.shards": digits_set / "train",
        "data.workers": 0,
        "data.streams": 2,
        "packing.seq-len": 64,
        "packing.sequences": 2,
        "packing.lookahead": 16,
        "train.steps": 3,
        "train.log-every": 1,
    } | {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_runs(name, tmp_path, digits_set, tiny_model):
    flags = small(tmp_path, digits_set)
    flags += FLAGS.get(name, "").replace("MODEL", str(tiny_model)).split()
    if name not in TRANSFERS:
        flags += [f"--model.{field}={value}" for field, value in TINY.items()]
        flags += ["--model.num-classes=10"]
    assert dispatch(["train", name, *flags]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["loss"] is not None and line["grad_norm"] is not None for line in lines)
    assert load_model(tmp_path).config == load_config(tmp_path / "config.yaml").model


def test_what_recipes_say_of_their_run_is_in_their_help(capsys):
    assert dispatch(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert f"{name:<24}{(recipe.__doc__ or '').splitlines()[0]}" in printed


def test_a_linear_probe_changes_the_head_alone(tmp_path, digits_set, tiny_model):
    assert dispatch(["train", "linear_probe", "--model", str(tiny_model), *small(tmp_path, digits_set)]) == 0
    before, after = load_model(tiny_model).state_dict(), load_model(tmp_path).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_head_of_other_classes_starts_anew_and_low(tmp_path, digits_set, tiny_model):
    flags = small(
        tmp_path, digits_set, model__num_classes=12, train__head_bias=-3, train__steps=1, optim__lr=1e-12
    )
    assert dispatch(["train", "finetune", "--model", str(tiny_model), "--train.ema=0", *flags]) == 0
    before, after = load_model(tiny_model).state_dict(), load_model(tmp_path).state_dict()
    assert torch.allclose(after["head.bias"], torch.tensor(-3.0), atol=1e-6)
    assert after["head.weight"].abs().max() < 1e-6
    for name in before.keys() - {"head.weight", "head.bias"}:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)


def test_a_resumed_run_no_longer_needs_the_model_it_started_with(tmp_path, digits_set, tiny_model):
    start, run = tmp_path / "start", tmp_path / "run"
    save_model(load_model(tiny_model), start)
    flags = ["train", "finetune", *small(run, digits_set)]
    assert dispatch([*flags, "--model", str(start)]) == 0
    (start / "model.safetensors").unlink()
    (start / "config.json").unlink()
    again = ["train", str(run / "config.yaml"), "--train.steps", "5"]
    assert dispatch(again) == 0
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 5


def test_an_architecture_comes_with_the_weights(tiny_model):
    config = start_with(find_recipe("finetune"), str(tiny_model))
    assert config.model == load_model(tiny_model).config
    assert config.train.init == str(tiny_model)


def test_model_is_taken_out_of_the_flags(capsys):
    assert read_start(["--model", "a/b", "--train.steps", "3"]) == (Start("a/b"), ["--train.steps", "3"])
    assert read_start(["--model=a/b", "--model.width=3"]) == (Start("a/b"), ["--model.width=3"])
    assert read_start(["--model.width", "3"]) == (Start(), ["--model.width", "3"])
    with pytest.raises(SystemExit) as stopped:
        read_start(["--model", "--train.steps"])
    assert stopped.value.code == 2
    assert "Missing value for argument '--model'" in capsys.readouterr().err
    assert dispatch(["train", "--seed", "3", "digits"]) == 2
    assert "'--seed' is neither a recipe" in capsys.readouterr().err


def test_a_missing_model_is_one_sentence(capsys, tmp_path):
    assert dispatch(["train", "finetune", "--model", str(tmp_path / "none"), "--data.shards", "x"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
