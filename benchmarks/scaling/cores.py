"""How many cores have to read and decode for one GPU, from measured rates of a core and predicted ones of a
GPU."""

from typing import Any

from packvit.train.recipes.find import RECIPES
from packvit.train.tokens import mean_tokens

TOKENS = 65_536  # of the step whose time is predicted
RUNS = (("navit_b16", "B"), ("naflex", "B"), ("flexivit_b_i21k", "B"), ("navit_l16", "L"))


def loader_cores(rates: dict[str, dict[str, float]], roofline: dict[str, dict[str, float]]) -> dict[str, Any]:
    """For some recipes the images that a GPU takes a second, and the cores that bring as many.

    Args:
        rates: packed images a second of one core, by size and pipeline (results/data.json).
        roofline: predicted milliseconds a step, by model (results/gpu-dry.json).
    """
    found = {}
    for name, model in RUNS:
        tokens = mean_tokens(RECIPES[name]())
        images = TOKENS / tokens / roofline[f"{model}, as it is by default"]["ms_a_step"] * 1000
        cores = {size: images / of_size["packvit"] for size, of_size in rates.items()}
        found[name] = {"model": f"ViT-{model}", "tokens": tokens, "images_per_s": images, "cores": cores}
    return found
