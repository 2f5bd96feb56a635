"""Configurations: what is written can be read, and what is wrong is named."""

import pytest
import tyro
import yaml

from packvit.evaluate import EvalConfig, check_memory
from packvit.packing import PackingConfig, ViewsConfig
from packvit.train.config import (
    Config,
    TrainConfig,
    changed_fields,
    load_config,
    plain_config,
    save_config,
)
from packvit.train.recipes.find import RECIPES, find_recipe
from packvit.train.step.optim import OptimConfig


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_survives_a_round_trip(name, tmp_path):
    config = find_recipe(name)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert find_recipe(str(tmp_path / "config.yaml")) == config


def test_prefixes_survive_a_round_trip_and_the_command_line(tmp_path):
    config = Config(optim=OptimConfig(lr_factors=(("text.", 0.1), ("model.", 2.0))))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    given = tyro.cli(Config, args=["--optim.lr-factors", "text.", "0.1", "model.", "2"])
    assert given == config


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("packing", {"sq_len": 5}, "sq_len"),
        ("packing", {"seq_len": "long"}, r"packing\.seq_len"),
        ("packing", {"seq_len": 0}, r"packing\.seq_len=0"),
        ("train", {"loss": "hinge"}, r"train\.loss"),
        ("train", {"profile": -1}, r"train\.profile=-1"),
    ],
)
def test_a_wrong_field_of_a_file_is_named(section, change, message, tmp_path):
    path = tmp_path / "config.yaml"
    save_config(Config(), path)
    values = yaml.safe_load(path.read_text())
    values[section] |= change
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=message):
        load_config(path)


def test_a_file_that_is_not_a_configuration_is_named(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        load_config(path)
    path.write_text("just text")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        load_config(path)


def test_unknown_recipes_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="digits"):
        find_recipe("nonsense")
    with pytest.raises(ValueError, match="no such file"):
        find_recipe("nowhere.yaml")


def test_impossible_values_name_their_field():
    with pytest.raises(ValueError, match=r"train\.steps=0"):
        TrainConfig(steps=0)


FIXED_FLAGS = {
    "--run-dir": "x",
    "--seed": "3",
    "--data.shards": "a b",
    "--data.val-shards": "c",
    "--data.workers": "0",
    "--data.streams": "2",
    "--data.max-bad-fraction": "0.5",
    "--train.steps": "2",
    "--train.checkpoint-every": "1",
    "--train.log-every": "1",
    "--train.accumulate": "2",
    "--packing.seq-len": "77",
    "--packing.sequences": "3",
    "--packing.algorithm": "next_fit",
    "--packing.lookahead": "5",
    "--views.patch-sizes": "7 14",
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_takes_the_fixed_flags(name):
    flags = [text for flag, values in FIXED_FLAGS.items() for text in (flag, *values.split())]
    config = tyro.cli(Config, default=find_recipe(name), args=flags)
    assert (config.seed, config.data.shards, config.packing.seq_len) == (3, ("a", "b"), 77)
    assert config.views.patch_sizes == (7, 14)


def test_only_changes_that_matter_to_a_run_are_named():
    saved = plain_config(Config())
    assert changed_fields(saved, Config()) == {}
    config = Config(seed=3, train=TrainConfig(steps=7, log_every=1, checkpoint_every=1))
    assert changed_fields(saved, config) == {"seed": (0, 3), "train.steps": (1000, 7)}
    del saved["train"]["steps"]  # as a version of packvit without this field would have saved it
    assert changed_fields(saved, config) == {"seed": (0, 3), "train.steps": (1000, 7)}


def test_what_no_machine_has_room_for_is_refused():
    with pytest.raises(ValueError, match=r"threads=100000 must lie in 0\.\.1024"):
        Config(threads=100_000)
    with pytest.raises(ValueError, match=r"views\.patch_sizes=\(16, 4096\): a side has at most 1024"):
        Config(views=ViewsConfig(patch_sizes=(16, 4096)))
    with pytest.raises(ValueError, match=r"eval\.patch_sizes=\(4096,\): a side has at most 1024"):
        EvalConfig(patch_sizes=(4096,))
    few = PackingConfig(seq_len=1024, sequences=8)
    check_memory(few, (8, 16, 48))
    with pytest.raises(ValueError, match=r"of 64, 1024 pixels a side takes 13246 GB, more than the \d+ GB"):
        check_memory(PackingConfig(seq_len=2**20), (64, 1024))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=f"optim.lr={value}"):
        Config(optim=OptimConfig(lr=value))
    with pytest.raises(ValueError, match=f"optim.betas={value}"):
        Config(optim=OptimConfig(betas=(0.9, value)))
