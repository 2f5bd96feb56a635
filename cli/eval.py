"""`packvit eval MODEL... ...`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from packvit.cli.eval_sets import name_sets
from packvit.cli.options import read_options
from packvit.common.engine.engine import EngineConfig
from packvit.common.engine.make import EngineFlags, make_engine
from packvit.evaluate.request.carry_out import carry_out
from packvit.evaluate.request.request import Options, Request


@dataclass(frozen=True)
class Eval(Options):
    """Evaluate models at every requested resolution and patch size, in one pass over the images.

    If the command is killed, repeat it to continue. For a run's folder, --shards, --label-field,
    --multi-label, --resolutions and --patch-sizes default to those of the run's configuration. Two towers
    classify by names of classes if --class-names, --templates or classes.json beside the shards gives them,
    and retrieve captions otherwise; with --captions they do both.

    Args:
        models: runs' folders, checkpoints, or any files that load_model or load_two_towers reads.
        sets: further sets as NAME=SHARDS; repeat a name to add shards.
        label_map: NAME=FILE, a JSON file with the model's classes for each label of one of --sets.
        label_sets: NAME=FILE, a JSON file with all right answers for each image of one of --sets.
        engine: see its flags.
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")]
    sets: tuple[str, ...] = ()
    label_map: tuple[str, ...] = ()
    label_sets: tuple[str, ...] = ()
    engine: EngineFlags = field(default_factory=EngineConfig)


def main(arguments: Sequence[str]) -> None:
    """Evaluate."""
    options = read_options(Eval, "packvit eval", arguments)
    start = None
    if options.engine.engine != "local":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"--engine {options.engine.engine} starts its processes itself: start packvit eval without "
                "torchrun"
            )
        start = partial(make_engine, options.engine, Console(stderr=True))
    carry_out(to_request(options), start=start)


def to_request(options: Eval) -> Request:
    """What the flags ask for.

    Raises:
        ValueError: --sets, --label-map or --label-sets are not of their form.
    """
    given = {f.name: getattr(options, f.name) for f in fields(Options)}
    sets = name_sets(options.sets, options.label_map, options.label_sets)
    return Request(models=options.models, sets=sets, **given)
