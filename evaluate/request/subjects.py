"""The models and the sets of a request, opened."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from packvit.data import ClassTarget, EvalSet
from packvit.evaluate.checks import check_classes
from packvit.evaluate.loss import loss_kind
from packvit.evaluate.request.request import NamedSet, Request
from packvit.evaluate.sweep.evaluators import Accuracy, AveragePrecision
from packvit.evaluate.sweep.grid import Subject
from packvit.evaluate.sweep.sets import MakeSetEvaluator, open_judged, open_mapped
from packvit.models import PackedViT, hash_model, load_model

IN_MEMORY = "model"  # how a model without a path is called


def load_subjects(request: Request) -> list[Subject]:
    """The models, with what measures them.

    Raises:
        FileNotFoundError, ValueError: one cannot be loaded, has no classes, or has other ones than the first.
    """
    subjects: list[Subject] = []
    for source in request.models:
        path = None if isinstance(source, PackedViT) else source
        model = source if isinstance(source, PackedViT) else load_model(source)
        place = str(path or "the model")
        classes = model.config.num_classes
        if classes == 0:
            raise ValueError(f"{place} has no classification head, so there is no accuracy to evaluate")
        if subjects and classes != subjects[0].model.config.num_classes:
            raise ValueError(
                f"{place} has {classes} classes, {subjects[0].path} has "
                f"{subjects[0].model.config.num_classes}: evaluate them one at a time"
            )
        loss = request.loss or (loss_kind(path) if path else None) or "softmax"
        kind = AveragePrecision if request.multi_label else Accuracy
        evaluator = kind(loss, request.save_predictions, request.features)
        name = free_name(path, [subject.name for subject in subjects])
        subjects.append(Subject(name, place, model, hash_model(model), [evaluator], loss))
    return subjects


def free_name(path: Path | None, taken: Sequence[str]) -> str:
    """The last part of a model's path, with a number where another model has it."""
    name = path.absolute().name if path else IN_MEMORY
    return next(n for n in chain([name], (f"{name}-{i}" for i in count(2))) if n not in taken)


def open_sets(
    request: Request, named: Mapping[str, NamedSet], first: Subject
) -> tuple[dict[str, EvalSet], dict[str, MakeSetEvaluator]]:
    """The sets by name, and what measures those whose labels are not as the others'.

    Args:
        first: of the models, which all have the same classes.

    Raises:
        ValueError: one is empty, or has labels of other classes than the models; or a file does not fit.
        OSError: a file cannot be read.
    """
    field, fetch, classes = request.label_field or "cls", request.fetch, first.model.config.num_classes
    target = ClassTarget(field, request.multi_label, classes)
    sets: dict[str, EvalSet] = {}
    evaluators: dict[str, MakeSetEvaluator] = {}
    for name, own in named.items():
        if own.label_map is not None:
            opened = open_mapped(own.shards, own.label_map, classes, field, fetch)
        elif own.label_sets is not None:
            opened = open_judged(own.shards, own.label_sets, classes, fetch)
        else:
            sets[name] = EvalSet(own.shards, {"label": target}, fetch)
            check_classes(sets[name], classes, first.path)
            continue
        sets[name], evaluators[name] = opened.images, opened.evaluator
    return sets, evaluators


def measure_sets(subject: Subject, evaluators: Mapping[str, MakeSetEvaluator], request: Request) -> Subject:
    """The model with an evaluator for each set that has its own."""
    made = {
        name: [make(subject.loss, request.save_predictions, request.features)]
        for name, make in evaluators.items()
    }
    return replace(subject, of_sets=made)
