"""The models of a request, loaded, and their evaluators on each set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, product
from pathlib import Path
from typing import Any

from packvit.common.stores.copies import url_of
from packvit.evaluate.loss import loss_kind
from packvit.evaluate.measures.calibration import LossKind
from packvit.evaluate.request.request import Request, distinct
from packvit.evaluate.request.sets import OpenedImages
from packvit.evaluate.request.words import Words, find_tokenizer
from packvit.evaluate.results import MAIN
from packvit.evaluate.sweep.evaluators import Accuracy, AveragePrecision, Evaluator, Scores
from packvit.evaluate.sweep.grid import Evaluation, Subject
from packvit.evaluate.texts.embed import TextEmbedder
from packvit.evaluate.texts.prompts import embed_classes
from packvit.evaluate.texts.retrieval import Retrieval, make_retrieval
from packvit.models import (
    PackedViT,
    TextEncoder,
    TwoTowers,
    has_text_tower,
    hash_model,
    load_model,
    load_two_towers,
)

IN_MEMORY = "model"  # how a model without a path is called


@dataclass(frozen=True)
class Loaded:
    """A model from its files.

    Args:
        path: the requested path, for messages.
        name: its name among the models.
        model: the model that sees the images.
        loss: the loss that it was trained with.
        towers: the two towers that it belongs to, or None.
        encode: makes tokens for the text tower.
    """

    path: str
    name: str
    model: PackedViT
    loss: LossKind
    towers: TwoTowers | None = None
    encode: TextEncoder | None = None


def load_models(request: Request) -> list[Loaded]:
    """The models; all of one tower or all of two.

    Raises:
        FileNotFoundError, ValueError: a model cannot be loaded, has neither classes nor a text tower, or has
            another kind or other classes than the first.
    """
    loaded: list[Loaded] = []
    for source, depth in product(request.models, distinct(request.depths) or (None,)):
        name = free_name(source, [one.name for one in loaded], "" if depth is None else f"-d{depth}")
        if isinstance(source, PackedViT):
            if depth is not None:
                raise ValueError("depths: a model in memory is keeps its depth: name one by its path")
            one = Loaded("the model", name, source, request.loss or "softmax")
        elif has_text_tower(source):
            if depth is not None:
                raise ValueError(f"depths: {source} has a text tower: evaluate it with all of its blocks")
            towers = load_two_towers(source)
            encode = TextEncoder(find_tokenizer(source, request.tokenizer), towers.config.text)
            # Only the sigmoid loss has a bias.
            trained = "softmax" if towers.config.bias is None else "sigmoid"
            one = Loaded(_said(source), name, towers.image, request.loss or trained, towers, encode)
        else:
            loss = request.loss or loss_kind(source) or "softmax"
            model = load_model(source) if depth is None else load_model(source, depth=depth)
            one = Loaded(_said(source), name, model, loss)
        check_alike(one, loaded[0] if loaded else one)
        loaded.append(one)
    return loaded


def _said(path: Path) -> str:
    return url_of(path) or str(path)


def check_alike(one: Loaded, first: Loaded) -> None:
    """Refuse a model that cannot be measured in the same way as the first.

    Raises:
        ValueError: names it.
    """
    if (one.towers is None) != (first.towers is None):
        with_text, without = (one, first) if first.towers is None else (first, one)
        raise ValueError(
            f"{with_text.path} has a text tower and {without.path} has none: evaluate them one at a time"
        )
    if one.towers is not None:
        return
    classes, others = one.model.config.num_classes, first.model.config.num_classes
    if classes == 0:
        raise ValueError(
            f"{one.path} has no classification head and no text tower, so there is nothing to evaluate"
        )
    if classes != others:
        raise ValueError(
            f"{one.path} has {classes} classes, {first.path} has {others}: evaluate them one at a time"
        )


def free_name(source: Path | PackedViT, taken: Sequence[str], end: str = "") -> str:
    """The last part of a model's path and `end`, with a number where another model has it."""
    name = (source.absolute().name if isinstance(source, Path) else IN_MEMORY) + end
    return next(n for n in chain([name], (f"{name}-{i}" for i in count(2))) if n not in taken)


def make_subject(
    one: Loaded,
    sets: Mapping[str, OpenedImages],
    words: Words | None,
    request: Request,
    evaluation: Evaluation,
) -> Subject:
    """A model with an evaluator of each set; every rank calls it.

    Args:
        words: the words that two towers are measured with; None for a single tower.

    Raises:
        ValueError: no caption of a set can be used.
    """
    scores, embed = None, None
    facts: dict[str, Any] = {}
    if one.towers is not None and one.encode is not None and words is not None:
        ranks, precision = evaluation.ranks, evaluation.precision
        tower = one.towers.text.to(ranks.device)
        embed = TextEmbedder(tower, one.encode, ranks, precision, evaluation.tokens)
        facts = words.facts
        if words.names:
            scores = embed_classes(embed, one.towers.logits, words.names, words.templates)
            say_cut(evaluation, "prompts", scores.cut, one)
    evaluators = {name: make_evaluators(one, opened, scores, embed, request) for name, opened in sets.items()}
    for name, own in evaluators.items():
        cut = sum(evaluator.cut for evaluator in own if isinstance(evaluator, Retrieval))
        say_cut(evaluation, f"captions of {name}", cut, one)
    if one.towers is not None:
        one.towers.text.to("cpu")
    # Sets without labels or captions of their own are measured as the main one is.
    shared = [name for name, opened in sets.items() if opened.plain]
    of_sets = {name: own for name, own in evaluators.items() if name not in shared}
    weights = hash_model(one.model)
    return Subject(one.name, one.path, one.model, weights, evaluators[MAIN], one.loss, of_sets, facts)


def make_evaluators(
    one: Loaded,
    opened: OpenedImages,
    scores: Scores | None,
    embed: TextEmbedder | None,
    request: Request,
) -> list[Evaluator]:
    """The evaluators of a model on a set: classification, retrieval, or both in this order."""
    made: list[Evaluator] = []
    answers = request.save_predictions, request.features, scores
    if opened.make is not None:
        made.append(opened.make(one.loss, *answers))
    elif opened.classes:
        kind = AveragePrecision if request.multi_label else Accuracy
        made.append(kind(one.loss, *answers))
    if opened.captions is not None and embed is not None:
        made.append(make_retrieval(embed, opened.captions, request.features))
    return made


def say_cut(evaluation: Evaluation, what: str, cut: int, one: Loaded) -> None:
    """Say how many texts were too long, if any were."""
    if cut and one.towers is not None:
        most = one.towers.config.text.max_tokens
        evaluation.display.say(f"{cut} {what} have more than {most} tokens and are cut off")
