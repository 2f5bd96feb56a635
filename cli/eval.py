"""`packvit eval MODEL... ...`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, product
from pathlib import Path
from typing import Annotated, Literal

import tyro

from packvit.cli.eval_sets import NamedSet, name_sets
from packvit.cli.train import refuse_foreign_commands
from packvit.common.display import Display
from packvit.common.files import check_writable
from packvit.common.ranks import start_ranks, stop_ranks
from packvit.data import ClassTarget, EvalSet, FetchConfig, every_corruption, parse_corruptions
from packvit.evaluate import (
    Accuracy,
    Asked,
    AveragePrecision,
    Evaluation,
    LossKind,
    MakeSetEvaluator,
    Setting,
    Subject,
    check_classes,
    evaluate,
    find_run_config,
    loss_kind,
    open_judged,
    open_mapped,
)
from packvit.models import hash_model, load_model
from packvit.packing import PackingConfig
from packvit.train.config import load_config
from packvit.train.run import eval_settings


@dataclass(frozen=True)
class Eval:
    """Evaluate models at every resolution and patch size asked for, in one pass over the images.

    A command that was killed goes on where it was. Of a run's folder, --shards, --resolutions and
    --patch-sizes are those of its configuration unless they are given.

    Args:
        models: runs' folders, checkpoints, or any files that load_model reads.
        shards: webdataset shards: files, patterns or folders.
        resolutions: sides in pixels of the square with a view's area.
        patch_sizes: sides of a patch in pixels.
        tokens: for each, the largest grid of at most so many tokens is evaluated, at the patch size that the
            results at --resolutions favour; without --resolutions at all patch sizes.
        protocol: native shows whole images at their aspect ratio, square squashes them to squares, crop:0.875
            shows the central square whose side is that share of the shorter side.
        sets: further sets as NAME=SHARDS; a name that is given again adds shards.
        label_map: NAME=FILE, a JSON file with the model's classes that each label of one of --sets means.
        label_sets: NAME=FILE, a JSON file with all right answers to each image of one of --sets.
        multi_label: images of the other sets have any number of classes; average precision is measured.
        corruptions: all, kinds such as fog, or fog:3; each at each strength makes a set of the main one.
        out: folder for results.json, predictions.npz and so on; by default MODEL/eval. Results that are there
            already are kept under another name.
        save_predictions: predictions.npz also holds all logits, and there is one for every corrupted set.
        features: predictions.npz also holds what enters the head.
        loss: that the models were trained with, which says how logits become probabilities; by default what
            a run's configuration says, else softmax.
        cost: whether throughput, latency and memory are measured.
        seq_len, sequences: a batch has so many tokens times so many, in one sequence; a longer view has a
            batch of its own.
        precision: of matrix products; auto is bf16 on CUDA and fp32 on a CPU.
        workers: processes of each rank that decode.
        device: auto takes a GPU when there is one.
        label_field: of every sample, such as cls or json:label; by default cls, or that of the run where its
            shards are taken.
        fetch: how remote and gzipped shards are fetched.
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional]
    shards: tuple[str, ...] = ()
    resolutions: tuple[int, ...] = ()
    patch_sizes: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    protocol: str = "native"
    sets: tuple[str, ...] = ()
    label_map: tuple[str, ...] = ()
    label_sets: tuple[str, ...] = ()
    multi_label: bool = False
    corruptions: tuple[str, ...] = ()
    out: Path | None = None
    save_predictions: bool = False
    features: bool = False
    loss: LossKind | None = None
    cost: bool = True
    seq_len: int = 1024
    sequences: int = 8
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    workers: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    label_field: str | None = None
    fetch: FetchConfig = field(default_factory=FetchConfig)


def main(arguments: Sequence[str]) -> None:
    """Evaluate."""
    options = tyro.cli(Eval, prog="packvit eval", args=arguments)
    check_values(options)
    folder = find_folder(options)
    check_writable(folder)
    options = complete(options)
    packing = PackingConfig(seq_len=options.seq_len, sequences=options.sequences)
    settings, limits = make_settings(options)
    corruptions = parse_corruptions(options.corruptions)
    taken = [one.name for one in every_corruption()] if corruptions else []
    named = name_sets(options.shards, options.sets, options.label_map, options.label_sets, taken)
    subjects = load_subjects(options)
    ranks = start_ranks(options.device)
    try:
        sets, evaluators = open_sets(options, named, subjects[0].model.config.num_classes)
        subjects = [measure_sets(subject, evaluators, options) for subject in subjects]
        display = Display(quiet=not ranks.is_main)
        evaluation = Evaluation(folder, packing, ranks, options.workers, options.precision, display)
        asked = Asked(
            sets,
            settings,
            limits,
            cost=options.cost,
            keep=True,
            corruptions=corruptions,
            keep_corrupted=options.save_predictions,
        )
        evaluate(evaluation, subjects, asked)
        display.say(f"Wrote {folder / 'results.json'}")
    finally:
        stop_ranks()


def check_values(options: Eval) -> None:
    """Refuse sizes below 1, and what does not go together.

    Raises:
        ValueError: names the flag.
    """
    if options.multi_label and options.corruptions:
        raise ValueError("--corruptions are summed up as accuracy, which --multi-label does not have")
    if not options.models:
        raise ValueError("packvit eval needs at least one model")
    for name in ("resolutions", "patch_sizes", "tokens"):
        values = getattr(options, name)
        if any(value < 1 for value in values):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {' '.join(map(str, values))}: every value must be at least 1")


def find_folder(options: Eval) -> Path:
    """Where the results go.

    Raises:
        ValueError: there are several models, and no --out.
    """
    if options.out is not None:
        return options.out
    if len(options.models) > 1:
        raise ValueError("several models need --out, the folder of what is said of all of them")
    model = next(iter(options.models))
    return (model if model.is_dir() else model.parent) / "eval"


def complete(options: Eval) -> Eval:
    """The options with what was not given taken from the run of the first model.

    Raises:
        ValueError: names the flag that neither says.
    """
    shown = bool(options.resolutions or options.tokens)
    path = find_run_config(options.models[0])
    if path is not None and not (options.shards and options.patch_sizes and shown):
        config = load_config(path)
        settings = eval_settings(config)
        if not options.shards:
            refuse_foreign_commands(config, ())
            field = options.label_field or config.data.label_field
            options = replace(options, shards=config.data.val_shards, label_field=field)
        if not options.patch_sizes:
            options = replace(options, patch_sizes=distinct(s.patch_size for s in settings))
        if not shown:
            options = replace(options, resolutions=distinct(s.resolution or 0 for s in settings))
    for name in ("shards", "patch_sizes"):
        if not getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} needs at least one value")
    if not options.resolutions and not options.tokens:
        raise ValueError("--resolutions needs at least one value, or --tokens")
    return options


def distinct(values: Iterable[int]) -> tuple[int, ...]:
    """Each value once, in the order in which they come first."""
    return tuple(dict.fromkeys(values))


def make_settings(options: Eval) -> tuple[list[Setting], tuple[int, ...]]:
    """Settings of the grid, and the numbers of tokens for which its results choose a patch size.

    Raises:
        ValueError: no such protocol.
    """
    sizes, protocol, tokens = distinct(options.patch_sizes), options.protocol, distinct(options.tokens)
    if not options.resolutions:
        return [Setting(p, tokens=n, protocol=protocol) for n, p in product(tokens, sizes)], ()
    resolutions = distinct(options.resolutions)
    return [Setting(p, r, protocol=protocol) for p, r in product(sizes, resolutions)], tokens


def load_subjects(options: Eval) -> list[Subject]:
    """The models, with what measures them.

    Raises:
        FileNotFoundError, ValueError: one cannot be loaded, has no classes, or has other ones than the first.
    """
    subjects: list[Subject] = []
    for path in options.models:
        model = load_model(path)
        classes = model.config.num_classes
        if classes == 0:
            raise ValueError(f"{path} has no classification head, so there is no accuracy to evaluate")
        if subjects and classes != subjects[0].model.config.num_classes:
            raise ValueError(
                f"{path} has {classes} classes, {options.models[0]} has "
                f"{subjects[0].model.config.num_classes}: evaluate them one at a time"
            )
        loss = options.loss or loss_kind(path) or "softmax"
        kind = AveragePrecision if options.multi_label else Accuracy
        evaluator = kind(loss, options.save_predictions, options.features)
        name = free_name(path, [subject.name for subject in subjects])
        subjects.append(Subject(name, str(path), model, hash_model(model), [evaluator], loss))
    return subjects


def free_name(path: Path, taken: Sequence[str]) -> str:
    """The last part of a model's path, with a number where another model has it."""
    name = path.absolute().name
    return next(n for n in chain([name], (f"{name}-{i}" for i in count(2))) if n not in taken)


def open_sets(
    options: Eval, named: Mapping[str, NamedSet], classes: int
) -> tuple[dict[str, EvalSet], dict[str, MakeSetEvaluator]]:
    """The sets by name, and what measures those whose labels are not as the others'.

    Raises:
        ValueError: one is empty, or has labels of other classes than the models; or a file does not fit.
        OSError: a file cannot be read.
    """
    field, fetch = options.label_field or "cls", options.fetch
    target = ClassTarget(field, options.multi_label, classes)
    sets: dict[str, EvalSet] = {}
    evaluators: dict[str, MakeSetEvaluator] = {}
    for name, own in named.items():
        if own.label_map is not None:
            opened = open_mapped(own.shards, own.label_map, classes, field, fetch)
        elif own.label_sets is not None:
            opened = open_judged(own.shards, own.label_sets, classes, fetch)
        else:
            sets[name] = EvalSet(own.shards, {"label": target}, fetch)
            check_classes(sets[name], classes, str(options.models[0]))
            continue
        sets[name], evaluators[name] = opened.images, opened.evaluator
    return sets, evaluators


def measure_sets(subject: Subject, evaluators: Mapping[str, MakeSetEvaluator], options: Eval) -> Subject:
    """The model with an evaluator for each set that has its own."""
    made = {
        name: [make(subject.loss, options.save_predictions, options.features)]
        for name, make in evaluators.items()
    }
    return replace(subject, of_sets=made)
