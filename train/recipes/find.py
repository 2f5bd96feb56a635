"""The recipes by name, and what a run starts from.

A recipe is a function without arguments that gives a whole run, readable alone. To add one, write it in a
file of this room and name it here.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from packvit.models import load_model
from packvit.train.config import Config, load_config
from packvit.train.recipes.digits import digits, digits_distill
from packvit.train.recipes.flexivit import flexivit_b_i1k_distill, flexivit_b_i21k, flexivit_s_i1k_distill
from packvit.train.recipes.navit import naflex, navit_b16, navit_l16
from packvit.train.recipes.transfer import fast_transfer, finetune, linear_probe

RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        digits_distill,
        flexivit_s_i1k_distill,
        flexivit_b_i1k_distill,
        flexivit_b_i21k,
        navit_b16,
        navit_l16,
        naflex,
        finetune,
        fast_transfer,
        linear_probe,
    )
}


def start_with(config: Config, path: str) -> Config:
    """The run with the architecture of a model, and its weights to start with.

    Raises:
        FileNotFoundError, ValueError: no model can be read from `path`.
    """
    own = config.model
    model = replace(
        load_model(Path(path)).config, drop_path=own.drop_path, checkpoint_every=own.checkpoint_every
    )
    return replace(config, model=model, train=replace(config.train, init=path))


def find_recipe(name: str) -> Config:
    """A recipe by its name, or the configuration saved in a .yaml file.

    Raises:
        ValueError: neither a recipe nor a readable file.
    """
    if name in RECIPES:
        return RECIPES[name]()
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        return load_config(path)
    raise ValueError(f"{name!r} is neither a recipe ({', '.join(RECIPES)}) nor a .yaml file")
