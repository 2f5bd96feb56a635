"""The recipes by name, and what a run starts from.

A recipe is a function without arguments that returns the configuration of a run. To add one, write it in a
file of this room and name it here.
"""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from packvit.data import CLASSES, named_folders, redact
from packvit.models import ViTConfig, has_text_tower, load_model, load_two_towers
from packvit.train.config import Config, load_config
from packvit.train.recipes.contrastive import (
    emoji,
    flexi_clip,
    flexi_lit,
    lit,
    navit_clip_l14,
    scenes,
    siglip_naflex_b16,
)
from packvit.train.recipes.digits import digits, digits_distill
from packvit.train.recipes.flexivit import (
    flexivit_b_i1k_distill,
    flexivit_b_i21k,
    flexivit_b_i21k_distill,
    flexivit_s_i1k_distill,
)
from packvit.train.recipes.navit import (
    naflex,
    navit_b16,
    navit_b16_93k,
    navit_b16_230k,
    navit_b16_460k,
    navit_b32,
    navit_l16,
)
from packvit.train.recipes.scratch import scratch
from packvit.train.recipes.transfer import fast_transfer, finetune, flexivit_transfer, linear_probe

RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        digits_distill,
        scratch,
        flexivit_s_i1k_distill,
        flexivit_b_i1k_distill,
        flexivit_b_i21k,
        flexivit_b_i21k_distill,
        navit_b16_93k,
        navit_b16_230k,
        navit_b16_460k,
        navit_b16,
        navit_b32,
        navit_l16,
        naflex,
        finetune,
        fast_transfer,
        flexivit_transfer,
        linear_probe,
        scenes,
        emoji,
        navit_clip_l14,
        siglip_naflex_b16,
        lit,
        flexi_lit,
        flexi_clip,
    )
}


# If a recipe defines its own model, it keeps its own values of these fields rather than those of the model
# that it starts with: how weights are stored for all patch sizes and grids.
KEPT_FIELDS = ("patch_buffer", "patch_operator")
KEPT_OF_POSITIONS = ("pos_grid", "pos_resize")  # if both have positions of the same kind


def start_with(config: Config, path: str) -> Config:
    """The run with the architecture of a model and its weights to start with.

    A recipe with a model of its own keeps its own `KEPT_FIELDS` and `KEPT_OF_POSITIONS`. A run that learns
    from captions also takes over the text tower if the model has one.

    Raises:
        FileNotFoundError, ValueError: no model can be read from `path`.
    """
    own, kept = config.model, ("drop_path", "checkpoint_every")
    if config.contrastive.loss and has_text_tower(path):
        towers = load_two_towers(path).config
        model, config = towers.image, replace(config, text=towers.text)
    else:
        model = load_model(Path(path)).config
        kept += ("num_classes",) if config.contrastive.loss else ()  # the width of a projection
    if own != ViTConfig(num_classes=own.num_classes):
        kept += KEPT_FIELDS + (KEPT_OF_POSITIONS if own.pos_embed == model.pos_embed else ())
    model = replace(model, **{name: getattr(own, name) for name in kept})
    return replace(config, model=model, train=replace(config.train, init=path))


def with_classes(config: Config) -> tuple[Config, str]:
    """The run with as many classes as `classes.json` beside its shards names, and a sentence that says so.

    A run that learns from teachers alone keeps the number of the teachers' classes. A run without a head
    stays without one, and a run that learns from captions has a projection instead.
    """
    model = config.model
    unlabelled = config.contrastive.loss or (config.distill.active and not config.distill.needs_labels)
    if model.num_classes == 0 or unlabelled:
        return config, ""
    folder, names = next(named_folders(config.data.shards, config.data.fetch), ("", []))
    if not names or len(names) == model.num_classes:
        return config, ""
    said = f"model.num_classes={len(names)}, from {redact(folder)}/{CLASSES}"
    return replace(config, model=replace(model, num_classes=len(names))), said


def describe_recipe(name: str) -> str:
    """A recipe's docstring as its help, with commands that can be pasted.

    All lines but the first are indented, because tyro would join them otherwise.
    """
    recipe = RECIPES.get(name)
    text = inspect.getdoc(recipe) if recipe else "A run from a saved configuration, whose values are shown."
    first, *others = (text or "").split("\n\n")
    return "\n\n".join([first, *map(_indent, others)])


def _indent(paragraph: str) -> str:
    """Indent commands further than other text, with a backslash at the end of a line that continues."""
    if paragraph.startswith(("packvit ", "torchrun ")):
        return textwrap.indent(paragraph.replace("\n--", " \\\n    --"), "    ")
    return textwrap.indent(paragraph, "  ")


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
