"""A request from its checks to its results."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from packvit.common.display import Display
from packvit.common.engine.engine import EngineConfig
from packvit.common.engine.make import make_engine
from packvit.common.files import check_writable
from packvit.common.ranks import ranks_of_call
from packvit.data import every_corruption, parse_corruptions
from packvit.evaluate.request.defaults import complete, find_folder
from packvit.evaluate.request.request import Request
from packvit.evaluate.request.sets import open_sets
from packvit.evaluate.request.subjects import Loaded, load_models, make_subject
from packvit.evaluate.request.words import Words, find_words, refuse_words
from packvit.evaluate.run import Asked, Rows, evaluate
from packvit.evaluate.sweep.grid import Evaluation
from packvit.packing import PackingConfig

LOCAL = EngineConfig()


class Done(NamedTuple):
    """The results.

    folder: folder with results.json and the other files.
    rows: rows of results.json, on all ranks.
    """

    folder: Path
    rows: Rows


def carry_out(request: Request, quiet: bool = False, engine: EngineConfig = LOCAL) -> Done:
    """Evaluate; every rank calls it.

    Args:
        quiet: whether nothing is printed.
        engine: where the models answer; local is these ranks.

    Raises:
        ValueError, OSError: something cannot be evaluated, read or written; says what.
    """
    request.check()
    spread = engine.engine != "local"
    if spread and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"--engine {engine.engine} starts processes by itself: start packvit eval without torchrun"
        )
    folder = find_folder(request)
    check_writable(folder)
    request = complete(request)
    packing = PackingConfig(seq_len=request.seq_len, sequences=request.sequences)
    settings, limits = request.settings()
    corruptions = parse_corruptions(request.corruptions)
    named = request.every_set([one.name for one in every_corruption()] if corruptions else [])
    loaded = load_models(request)
    words = choose_words(request, loaded[0])
    classes = loaded[0].model.config.num_classes if words is None else len(words.names)
    console = Console(stderr=True, quiet=quiet)
    with (
        make_engine(engine, console) if spread else nullcontext() as cluster,
        # What is left for this process must not need what the cluster has.
        ranks_of_call("auto" if spread and request.device == "cuda" else request.device) as ranks,
    ):
        opened = open_sets(named, request, classes, words, loaded[0].path)
        display = Display(quiet=quiet or not ranks.is_main)
        evaluation = Evaluation(
            folder, packing, ranks, request.workers, request.precision, display, cluster, request.device
        )
        subjects = [make_subject(one, opened, words, request, evaluation) for one in loaded]
        asked = Asked(
            {name: own.images for name, own in opened.items()},
            settings,
            limits,
            cost=request.cost,
            keep=True,
            corruptions=corruptions,
            keep_corrupted=request.save_predictions,
            classes=words and words.classes,
        )
        rows = ranks.gather(evaluate(evaluation, subjects, asked))[0]
        display.say(f"Wrote {folder / 'results.json'}")
    return Done(folder, rows)


def choose_words(request: Request, first: Loaded) -> Words | None:
    """What two towers are measured with; None if models have one; raises like `find_words`."""
    if first.towers is None:
        refuse_words(request, first.path)
        return None
    return find_words(request, Path(first.path))
