"""A request from its checks to its results."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from packvit.common.display import Display
from packvit.common.engine.engine import Engine
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


class Done(NamedTuple):
    """The results.

    folder: folder with results.json and the other files.
    rows: rows of results.json, on all ranks.
    """

    folder: Path
    rows: Rows


def carry_out(request: Request, quiet: bool = False, start: Callable[[], Engine] | None = None) -> Done:
    """Evaluate; every rank calls it.

    Args:
        quiet: whether nothing is printed.
        start: starts the engine that lets the models answer; by default these ranks do.

    Raises:
        ValueError, OSError: something cannot be evaluated, read or written; says what.
    """
    request.check()
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
    # What an engine leaves to this process must not need the GPUs of the engine's.
    device = "auto" if start is not None and request.device == "cuda" else request.device
    with start() if start else nullcontext() as engine, ranks_of_call(device) as ranks:
        opened = open_sets(named, request, classes, words, loaded[0].path, engine)
        display = Display(quiet=quiet or not ranks.is_main)
        evaluation = Evaluation(
            folder, packing, ranks, request.workers, request.precision, display, engine, request.device
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
