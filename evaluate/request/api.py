"""Evaluation from Python: `packvit.evaluate("runs/digits", resolutions=[32, 48])`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

from packvit.evaluate.plan.choose import make_budget
from packvit.evaluate.plan.folder import read_evaluation
from packvit.evaluate.plan.make import make_plan
from packvit.evaluate.plan.plan import Plan
from packvit.evaluate.report import measured
from packvit.evaluate.request.carry_out import carry_out
from packvit.evaluate.request.request import NamedSet, Request
from packvit.evaluate.results import MAIN
from packvit.evaluate.run import Rows
from packvit.models import PackedViT


class Run(Protocol):
    """What `packvit.train` returns, as far as evaluation looks at it."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        ...


Model = PackedViT | Run | str | PathLike[str]
Numbers = int | Sequence[int]
Shards = str | PathLike[str] | Sequence[str | PathLike[str]]
NAMED = {"models", "shards", "resolutions", "patch_sizes", "tokens", "out"}  # arguments of their own
OPTIONS = [f.name for f in fields(Request) if f.name not in NAMED] + ["label_map", "label_sets", "quiet"]


@dataclass(frozen=True, repr=False)
class EvaluationResults:
    """The results of an evaluation.

    Args:
        rows: rows of results.json, one for each setting, set and model; docs/evaluate.md explains the fields.
        folder: folder with results.json, report.html, predictions.npz and the other files.
    """

    rows: Rows
    folder: Path

    @property
    def best(self) -> dict[str, Any]:
        """The row of the main set with the highest accuracy, or average precision; if several are equal, the
        one with the fewest tokens."""
        measure = measured(self.rows[0])[0]
        rows = [row for row in self.rows if row["set"] == MAIN]
        return max(rows, key=lambda row: (_known(row[measure]), -row["tokens_per_image"]))

    def plan(
        self,
        max_tokens: float | None = None,
        max_gflops: float | None = None,
        max_ms: float | None = None,
        min_accuracy: float | None = None,
        stages: Literal[1, 2, 3] = 2,
        model: str | None = None,
    ) -> Plan:
        """The best setting, or cascade of settings, for a budget, to be used as `Predictor(model, plan=...)`.

        Args:
            max_tokens, max_gflops, max_ms: maximum mean cost of an image; milliseconds are the median at
                batch 1. A cascade meets it on the half of the images that it is chosen on, so on the other
                half, on which `measured` is measured, it may cost a little more. Without a limit, the most
                accurate setting is chosen.
            min_accuracy: instead of a limit: choose the plan with the fewest GFLOPs that reaches this
                accuracy.
            stages: maximum number of stages of a cascade; with 1, no cascade is considered.
            model: name of the model to plan for, if several were evaluated together.

        Raises:
            ValueError: there are several limits, no setting is within one, or the folder has changed.
        """
        budget = make_budget(max_tokens, max_gflops, max_ms, min_accuracy)
        return make_plan(read_evaluation(self.folder, model), budget, stages).plan

    def __repr__(self) -> str:
        best, measure = self.best, measured(self.rows[0])[0]
        return (
            f"EvaluationResults({len(self.rows)} rows, best {best['setting']}: {_known(best[measure]):.1%} "
            f"{measure} at {best['tokens_per_image']:.0f} tokens; {self.folder})"
        )


def evaluate(
    models: Model | Sequence[Model],
    shards: Shards = (),
    resolutions: Numbers = (),
    patch_sizes: Numbers = (),
    tokens: Numbers = (),
    out: str | PathLike[str] | None = None,
    **options: Any,
) -> EvaluationResults:
    """Evaluate models at every resolution and patch size, as `packvit eval` does.

    If the first model is a run, omitted values are taken from it: validation shards, label field, resolutions
    and patch sizes. If the process is killed, repeat the same call to continue. Under torchrun, every rank
    calls it.

    Args:
        models: a run's folder, the result of `packvit.train`, a checkpoint, anything else that load_model
            reads, or a PackedViT, whose device and mode are restored afterwards; or several of them with the
            same classes.
        shards: webdataset shards: files, patterns or folders.
        resolutions: sides in pixels of the square with a view's area.
        patch_sizes: sides of a patch in pixels.
        tokens: for each number, the largest grid of at most so many tokens is evaluated, at the patch size
            that the results at `resolutions` favour; without resolutions, at all patch sizes.
        out: the folder for results; by default `eval` in the model's folder. Existing results are kept under
            another name.
        options: other options of `packvit eval --help`, such as protocol="square", cost=False, device="cpu",
            label_field="json:label"; sets, label_map and label_sets are dictionaries by the set's name.
            quiet=True prints nothing.

    Raises:
        ValueError: something cannot be evaluated; says what.
        FileNotFoundError: there is no such model.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise ValueError(f"evaluate(): {unknown[0]} is not an option: there are {', '.join(OPTIONS)}")
    quiet = options.pop("quiet", False)
    sets = name_sets(*(options.pop(name, {}) for name in ("sets", "label_map", "label_sets")))
    several = list(models) if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    request = Request(
        models=tuple(map(place_of, several)),
        shards=texts(shards),
        resolutions=numbers(resolutions, "resolutions"),
        patch_sizes=numbers(patch_sizes, "patch_sizes"),
        tokens=numbers(tokens, "tokens"),
        depths=numbers(options.pop("depths", ()), "depths"),
        strides=numbers(options.pop("strides", ()), "strides"),
        sets=sets,
        corruptions=texts(options.pop("corruptions", ())),
        out=None if out is None else Path(out),
        **options,
    )
    with as_they_were([model for model in request.models if isinstance(model, PackedViT)]):
        done = carry_out(request, quiet)
    return EvaluationResults(done.rows, done.folder)


def place_of(model: Any) -> Path | PackedViT:
    """The path of a model, or the model itself.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(model, PackedViT):
        return model
    folder = getattr(model, "folder", model)
    if not isinstance(folder, str | PathLike):
        raise ValueError(
            f"evaluate(): {type(model).__name__} is not a model: give a path, a run or a PackedViT"
        )
    return Path(folder)


def name_sets(
    sets: Mapping[str, Shards], maps: Mapping[str, Any], answers: Mapping[str, Any]
) -> dict[str, NamedSet]:
    """The sets besides the main one.

    Raises:
        ValueError: a file is given for an unknown set, or two files for one set.
    """
    for name in (*maps, *answers):
        if name not in sets:
            raise ValueError(
                f"label_map or label_sets: {name!r} is not one of the sets ({', '.join(sets) or 'no set'})"
            )
        if name in maps and name in answers:
            raise ValueError(f"label_map and label_sets both say what the labels of {name} are")
    files = [{name: str(path) for name, path in each.items()} for each in (maps, answers)]
    return {name: NamedSet(texts(own), files[0].get(name), files[1].get(name)) for name, own in sets.items()}


@contextmanager
def as_they_were(models: Sequence[PackedViT]) -> Iterator[None]:
    """A context in which models are in eval mode; afterwards their mode and device are restored."""
    before = [(model.training, next(model.parameters()).device) for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, (training, device) in zip(models, before, strict=True):
            model.train(training).to(device)


def texts(shards: Shards) -> tuple[str, ...]:
    """One or several names as texts."""
    return (str(shards),) if isinstance(shards, str | PathLike) else tuple(map(str, shards))


def numbers(values: Numbers, name: str) -> tuple[int, ...]:
    """One or several whole numbers.

    Raises:
        ValueError: one is something else.
    """
    try:
        return tuple(index(value) for value in (values if isinstance(values, Iterable) else [values]))
    except TypeError as error:
        raise ValueError(f"{name}={values!r} must be a whole number, or a list of them") from error


def _known(value: float | None) -> float:
    """A measure, 0 where the model's outputs were not finite."""
    return value or 0.0
