"""Training from Python: `packvit.train("digits", data={"shards": ["shards/train"]})`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packvit.common.json_lines import read_json_lines
from packvit.models import PackedViT, load_model
from packvit.train.config import Config, parse_config, plain_config
from packvit.train.recipes.find import RECIPES, find_recipe, start_with, with_classes
from packvit.train.run import run


@dataclass(frozen=True)
class Trained:
    """The results of a run.

    Args:
        model: the trained model, in eval mode, on the CPU.
        history: the lines of metrics.jsonl, one for each logged step.
        folder: the run's folder, which `load_model` and `packvit eval` accept.
    """

    model: PackedViT
    history: list[dict[str, Any]]
    folder: Path


def train(recipe: str | Config, init: str | Path | None = None, **overrides: Any) -> Trained:
    """Run a recipe to its end, as `packvit train` does; the same run_dir resumes.

    Args:
        recipe: a recipe's name, the path of a saved config.yaml, or a Config.
        init: a model that load_model reads; gives the run its architecture and initial weights.
        overrides: values for fields of the configuration, sections as dictionaries: `run_dir="runs/mine",
            data={"shards": ["shards/train"]}, train={"steps": 100}`.

    Raises:
        ValueError: there is no such recipe or field, or a value is impossible; names it.
    """
    config = recipe if isinstance(recipe, Config) else find_recipe(recipe)
    if init is not None:
        config = start_with(config, str(init))
    config = parse_config(merge(plain_config(config), overrides, ""), "train()")
    if not isinstance(recipe, Config) and "num_classes" not in overrides.get("model", {}):
        config, _ = with_classes(config)
    run(config)
    history = read_json_lines(config.folder / "metrics.jsonl")
    return Trained(load_model(config.folder), history, config.folder)


def recipes() -> dict[str, str]:
    """All recipes as {name: a line about it}."""
    return {name: (recipe.__doc__ or "").splitlines()[0] for name, recipe in RECIPES.items()}


def merge(fields: dict[str, Any], changes: Mapping[str, Any], place: str) -> dict[str, Any]:
    """`fields` with `changes` applied, section by section.

    Args:
        place: where the fields are, such as "train.", for messages.

    Raises:
        ValueError: a change names an unknown field, or a section is not given as a mapping.
    """
    merged = dict(fields)
    for name, value in changes.items():
        if name not in fields:
            raise ValueError(f"train(): {place}{name} is not a field: there are {', '.join(fields)}")
        if isinstance(fields[name], dict):
            if not isinstance(value, Mapping):
                raise ValueError(f"train(): {place}{name} is a section: give its fields as a dictionary")
            value = merge(fields[name], value, f"{place}{name}.")
        merged[name] = str(value) if isinstance(value, Path) else value
    return merged
