"""`packvit eval MODEL... ...`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from packvit.cli.eval_sets import name_sets
from packvit.cli.options import read_options
from packvit.evaluate.request.carry_out import carry_out
from packvit.evaluate.request.request import Options, Request


@dataclass(frozen=True)
class Eval(Options):
    """Evaluate models at every resolution and patch size asked for, in one pass over the images.

    A command that was killed goes on where it was. Of a run's folder, what is not given of --shards,
    --label-field, --multi-label, --resolutions and --patch-sizes is that of its configuration. Two towers
    classify by names of classes where --class-names, --templates or classes.json beside the shards names
    them, and retrieve captions otherwise; with --captions they retrieve, too.

    Args:
        models: runs' folders, checkpoints, or any files that load_model or load_two_towers reads.
        sets: further sets as NAME=SHARDS; a name that is given again adds shards.
        label_map: NAME=FILE, a JSON file with the model's classes that each label of one of --sets means.
        label_sets: NAME=FILE, a JSON file with all right answers to each image of one of --sets.
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")]
    sets: tuple[str, ...] = ()
    label_map: tuple[str, ...] = ()
    label_sets: tuple[str, ...] = ()


def main(arguments: Sequence[str]) -> None:
    """Evaluate."""
    carry_out(to_request(read_options(Eval, "packvit eval", arguments)))


def to_request(options: Eval) -> Request:
    """What the flags ask for.

    Raises:
        ValueError: --sets, --label-map or --label-sets are not of their form.
    """
    given = {f.name: getattr(options, f.name) for f in fields(Options)}
    sets = name_sets(options.sets, options.label_map, options.label_sets)
    return Request(models=options.models, sets=sets, **given)
