"""`packvit train RECIPE|CONFIG.yaml ...`."""

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import tyro

from packvit.cli.commands import OTHERS_WAIT, is_other_rank
from packvit.train.config import Config
from packvit.train.recipes.find import RECIPES, find_recipe, start_with
from packvit.train.run import run


@dataclass(frozen=True)
class Start:
    """What a run starts from besides its recipe.

    Args:
        model: whatever load_model reads; gives the run its architecture and first weights.
    """

    model: str | None = None


def main(arguments: Sequence[str]) -> None:
    """Train; or list the recipes."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    recipe = arguments[0]
    default = find_recipe(recipe)
    model, rest = read_model(arguments[1:])
    if model is not None:
        default = start_with(default, model)
    with said_once():
        config = tyro.cli(Config, default=default, prog=f"packvit train {recipe}", args=rest)
    run(config)


def read_model(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The model to start with, and the arguments that belong to the run's configuration.

    Raises:
        ValueError: the model's name is empty.
    """
    with said_once():
        start, rest = tyro.cli(
            Start, prog="packvit train", args=arguments, return_unknown_args=True, add_help=False
        )
    if start.model == "":
        raise ValueError("--model needs the path of a model to start with")
    return start.model, rest


@contextmanager
def said_once() -> Iterator[None]:
    """All ranks read the same arguments: what is wrong with them is said by the first rank of a machine.

    The others leave it the time to say it, before torchrun ends all of them.
    """
    if not is_other_rank():
        yield
        return
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            yield
        except SystemExit:
            time.sleep(OTHERS_WAIT)
            raise


def overview() -> str:
    """What `packvit train --help` prints."""
    usage = "usage: packvit train RECIPE|CONFIG.yaml [--model MODEL] [--section.field VALUE ...]\n\nrecipes:"
    recipes = [f"  {name:<24}{(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()]
    return "\n".join(
        [
            usage,
            *recipes,
            "\n--model MODEL, whatever load_model reads, gives a run its architecture and first weights.",
            "`packvit train RECIPE --help` lists every field with the recipe's value.",
        ]
    )
