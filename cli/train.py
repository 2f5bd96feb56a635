"""`packvit train RECIPE|CONFIG.yaml ...`."""

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import tyro

from packvit.cli.commands import OTHERS_WAIT, is_other_rank
from packvit.cli.options import read_options
from packvit.common.display import Display
from packvit.data import find_commands, redact
from packvit.train.config import Config
from packvit.train.dry_run import dry_run
from packvit.train.recipes.find import RECIPES, describe_recipe, find_recipe, start_with, with_classes
from packvit.train.recipes.table import COLUMNS, table_of_recipes
from packvit.train.run import run

FLAGS = "--model, --dry-run and --allow-pipe are described by `packvit train --help`."
CLASSES = ("--model.num-classes", "--model.num_classes")


@dataclass(frozen=True)
class Start:
    """What a run starts from besides its recipe.

    Args:
        model: a model that load_model reads; gives the run its architecture and initial weights.
        allow_pipe: run commands that a configuration file names as shards, `pipe:COMMAND`.
        dry_run: run a few steps in a folder that is removed, and print what the run would cost.
    """

    model: str | None = None
    allow_pipe: bool = False
    dry_run: bool = False


def main(arguments: Sequence[str]) -> None:
    """Train; or list the recipes."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    if arguments[0] == "--recipes":
        Display().table("Recipes; packvit train RECIPE --help has every field", COLUMNS, table_of_recipes())
        return
    recipe = arguments[0]
    default = find_recipe(recipe)
    start, rest = read_start(arguments[1:])
    if start.model is not None:
        default = start_with(default, start.model)
    with said_once():
        about = f"{describe_recipe(recipe)}\n\n  {FLAGS}"
        config = read_options(Config, f"packvit train {recipe}", rest, default=default, description=about)
    if not any(argument.split("=")[0] in CLASSES for argument in rest) and recipe in RECIPES:
        config, said = with_classes(config)
        if said and not is_other_rank():
            print(said)
    if not start.allow_pipe:
        refuse_foreign_commands(config, rest)
    if start.dry_run:
        dry_run(config)
    else:
        run(config)


def refuse_foreign_commands(config: Config, arguments: Sequence[str]) -> None:
    """Refuse to run commands that the author of the configuration chose, rather than the user.

    Args:
        arguments: the command line's arguments; the user chose what they name.

    Raises:
        ValueError: shards are commands, and the command line does not name them.
    """
    given = {*arguments, *(argument.partition("=")[2] for argument in arguments)}
    for shard in find_commands((*config.data.shards, *config.data.val_shards)):
        if shard not in given:
            raise ValueError(
                f"the configuration names a command as shards, {redact(shard)!r}: give it on the command "
                "line, or --allow-pipe to run whatever the configuration names"
            )


def read_start(arguments: Sequence[str]) -> tuple[Start, list[str]]:
    """What the run starts with, and the arguments that belong to its configuration.

    Raises:
        ValueError: the model's name is empty.
    """
    with said_once():
        start, rest = tyro.cli(
            Start, prog="packvit train", args=arguments, return_unknown_args=True, add_help=False
        )
    if start.model == "":
        raise ValueError("--model needs the path of a model to start with")
    return start, rest


@contextmanager
def said_once() -> Iterator[None]:
    """All ranks read the same arguments; only the first rank of a machine reports what is wrong with them.

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
            "\n--model MODEL, any that load_model reads, gives a run its architecture and initial weights.",
            "--dry-run runs a few steps in a folder that is removed, and prints what the run would cost.",
            "--allow-pipe runs the commands that a CONFIG.yaml names as shards; otherwise they are refused.",
            "`packvit train --recipes` compares the recipes: source, model, tokens and images a step, steps.",
            "`packvit train RECIPE --help` says how to run a recipe, and lists every field with its value.",
        ]
    )
