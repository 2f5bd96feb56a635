"""Every recipe runs, and starts with the weights that it is given."""

import json

import pytest
import torch

from packvit.cli import dispatch
from packvit.cli.train import Start, read_start
from packvit.models import PackedViT, load_model, save_model
from packvit.models.presets import preset
from packvit.packing import views_at
from packvit.train.config import load_config
from packvit.train.recipes.find import RECIPES, find_recipe, start_with
from packvit.train.recipes.table import RANKS, images_per_step

TINY = {"width": 32, "depth": 2, "heads": 2}
# Given their model.
TRANSFERS = ("finetune", "fast_transfer", "flexivit_transfer", "linear_probe", "lit", "flexi_lit")
# Flags that a recipe cannot run without; MODEL is a small model.
FLAGS = {
    "digits_distill": "--distill.teachers MODEL",
    "flexivit_s_i1k_distill": "--model MODEL --distill.teachers MODEL",
    "flexivit_b_i21k_distill": "--model MODEL --distill.teachers MODEL",
    "flexivit_b_i1k_distill": "--model MODEL --distill.teachers MODEL",
    **dict.fromkeys(TRANSFERS, "--model MODEL"),
}
TEXT = {"width": 16, "depth": 1, "heads": 2, "vocab-size": 60}


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
def test_every_recipe_runs(name, tmp_path, digits_set, scenes_set, tiny_model):
    captions = bool(RECIPES[name]().contrastive.loss)
    flags = small(tmp_path, scenes_set if captions else digits_set)
    flags += [f"--text.{field}={value}" for field, value in TEXT.items()] if captions else []
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


# From FlexiViT's released configurations and NaViT's tables: lr, weight decay of body and head in PyTorch's
# convention, steps, warm-up, cooldown, images a step, side of the patch buffer.
PAPERS = {
    "flexivit_s_i1k_distill": (1e-4, 0.1, 0.1, 111_477, 5000, 0, 1024, 32),
    "flexivit_b_i1k_distill": (1e-4, 0.1, 0.1, 111_477, 5000, 0, 1024, 32),
    "flexivit_b_i21k": (1e-3, 0.1, 0.1, 310_823, 10_000, 0, 4096, 32),
    "flexivit_b_i21k_distill": (1e-4, 0.1, 0.1, 310_823, 5000, 0, 4096, 32),
    "flexivit_transfer": (0.01, 0.0, 0.0, 10_000, 500, 0, 512, 32),
    "navit_b16_93k": (8e-4, 0.03, 3.0, 93_000, 10_000, 10_000, 1.9e4, 16),
    "navit_b16_230k": (8e-4, 0.03, 3.0, 230_000, 10_000, 50_000, 1.9e4, 16),
    "navit_b16_460k": (8e-4, 0.03, 3.0, 460_000, 10_000, 100_000, 1.9e4, 16),
    "navit_b16": (8e-4, 0.03, 3.0, 920_000, 10_000, 100_000, 1.9e4, 16),
    "navit_b32": (8e-4, 0.03, 3.0, 920_000, 10_000, 100_000, 2.2e4, 32),
}


@pytest.mark.parametrize("name", list(PAPERS))
def test_recipes_have_the_numbers_of_their_papers(name):
    config = RECIPES[name]()
    optim = config.optim
    found = (optim.lr, optim.weight_decay, optim.head_weight_decay, config.train.steps)
    assert (*found, optim.warmup, optim.cooldown) == PAPERS[name][:6]
    assert images_per_step(config, RANKS) == pytest.approx(PAPERS[name][6], rel=0.05)
    assert config.model.patch_buffer == PAPERS[name][7]
    assert config.optim.clip == 1.0


def test_views_of_recipes_are_those_of_their_papers():
    for name in PAPERS:
        views = RECIPES[name]().views
        if name.startswith("flexivit"):
            assert (views.square, views.crop, views.crop_aspect, views.flip) == (True, 0.05, 4 / 3, 0.5)
            assert (views.resolution.low, views.resolution.high) == (240, 240)
        else:
            resolution = views.resolution
            assert (resolution.low, resolution.high, resolution.distribution) == (64, 256, "uniform")
            assert (views.rounding, views.drop.kind, views.drop.mean) == ("floor", "beta", 0.5)
            model = RECIPES[name]().model
            assert (model.biases, model.qkv_biases, model.norm, model.qk_norm) == (True, False, "rms", "rms")
    naflex = RECIPES["naflex"]().views
    shares = [views_at(naflex, images) for images in (0, 100_000 * 4096)]
    assert [(views.square, views.rounding) for views in shares] == [(True, "ceil"), (False, "ceil")]


def test_recipes_can_be_compared(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert dispatch(["train", "--recipes"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "navit_b16 " in line]
    assert "NaViT Tab. 2" in lines[0]
    assert "920,000" in lines[0]


def test_a_recipes_own_buffers_count_where_it_starts_with_a_model(tmp_path, digits_set, tiny_model):
    own = start_with(find_recipe("flexivit_s_i1k_distill"), str(tiny_model)).model
    given = load_model(tiny_model).config
    assert (own.patch_buffer, own.patch_operator) == (32, "bilinear")
    assert (own.width, own.depth, own.qk_norm) == (given.width, given.depth, given.qk_norm)
    flags = small(tmp_path, digits_set, train__steps=1, distill__teachers=tiny_model)
    assert dispatch(["train", "flexivit_s_i1k_distill", "--model", str(tiny_model), *flags]) == 0
    assert load_model(tmp_path).config.patch_buffer == 32


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
