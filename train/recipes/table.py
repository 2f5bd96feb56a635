"""The recipes at a glance: what they train, on how much, and from which source."""

import re

from packvit.models import ViTConfig
from packvit.models.presets import PRESETS
from packvit.train.config import Config
from packvit.train.recipes.find import RECIPES
from packvit.train.tokens import mean_tokens

COLUMNS = ["recipe", "source", "model", "patch sizes", "tokens/image", "images/step on 8 GPUs", "steps"]
RANKS = 8


def table_of_recipes() -> list[list[str]]:
    """A row of COLUMNS for each recipe."""
    rows = []
    for name, recipe in RECIPES.items():
        config = recipe()
        tokens = mean_tokens(config)
        ranks = 1 if config.threads == 1 else RANKS  # recipes that set their threads are for a CPU
        found = re.search(r"\(([^()]*)\)\.?$", (recipe.__doc__ or "").splitlines()[0])
        rows.append(
            [
                name,
                found[1] if found else "",
                describe_model(config.model),
                " ".join(map(str, config.views.patch_sizes)),
                f"{tokens:.0f}",
                f"{images_per_step(config, ranks):,.0f}",
                f"{config.train.steps:,}",
            ]
        )
    return rows


def images_per_step(config: Config, ranks: int) -> float:
    """Images in a step of so many ranks, if all sequences are full."""
    slots = config.packing.sequences * config.packing.seq_len * config.train.accumulate
    return ranks * slots / mean_tokens(config)


def describe_model(config: ViTConfig) -> str:
    """The model's size by name, or width and depth; or that the recipe takes a model from elsewhere."""
    if config == ViTConfig(num_classes=config.num_classes):
        return "given"
    found = [n for n, p in PRESETS.items() if (p["width"], p["depth"]) == (config.width, config.depth)]
    return found[0] if found else f"{config.width} x {config.depth}"
