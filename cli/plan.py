"""`packvit plan EVAL`: the best setting, or cascade of settings, for a budget."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from packvit.cli.options import read_options
from packvit.common.display import Display
from packvit.common.files import check_writable
from packvit.common.stores.copies import copy_folder, url_of
from packvit.evaluate.plan.choose import Budget, make_budget
from packvit.evaluate.plan.curve import draw_curve
from packvit.evaluate.plan.folder import read_evaluation
from packvit.evaluate.plan.latency import fit_latency, interpolate, latency_samples
from packvit.evaluate.plan.make import make_plan
from packvit.evaluate.plan.plan import write_plan
from packvit.evaluate.plan.show import say_errors, show_plan, show_predictions
from packvit.evaluate.results import RESULTS, predictions_name
from packvit.evaluate.setting import parse_setting

WIDTH = 120  # characters of a table where no terminal says its own


@dataclass(frozen=True)
class PlanOptions:
    """Choose the best setting, or cascade of settings, for a budget from the results of an evaluation;
    without a budget, choose the most accurate.

    Args:
        evaluation: folder that `packvit eval` wrote, here or in an object store.
        max_tokens: maximum number of tokens per image, on average; for a cascade, over the half of the images
            that it is chosen on.
        max_gflops: maximum number of GFLOPs per image, on average; see --max-tokens.
        max_ms: maximum latency at batch 1, in milliseconds, on the machine that ran the evaluation.
        percentile: percentile of the latency that --max-ms limits.
        min_accuracy: instead of a budget: choose the plan with the fewest GFLOPs that reaches this accuracy,
            a share in [0, 1].
        stages: maximum number of stages of a cascade; with 1, no cascade is considered.
        model: name of the model to plan for, if several were evaluated together.
        interpolate: with --max-ms, also consider settings whose latency was not measured, with a predicted
            one.
        setting: names of settings, such as r96-p8 or t100-p16, whose latency is predicted and printed.
        out: file for the plan; by default EVALUATION/plan.json. The figure cascade.png is written beside it.
    """

    evaluation: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EVAL")]
    max_tokens: float | None = None
    max_gflops: float | None = None
    max_ms: float | None = None
    percentile: Literal["p50", "p99"] = "p50"
    min_accuracy: float | None = None
    stages: Literal[1, 2, 3] = 2
    model: str | None = None
    interpolate: bool = False
    setting: tuple[str, ...] = ()
    out: Path | None = None


def main(arguments: Sequence[str]) -> None:
    """Choose, print, write."""
    options = read_options(PlanOptions, "packvit plan", arguments)
    budget = find_budget(options)
    settings = [parse_setting(name) for name in options.setting]
    folder, url = options.evaluation, url_of(options.evaluation)
    if url is not None:
        if options.out is None:
            raise ValueError(f"{url} is in a store: name the plan's file on this machine with --out")
        folder = copy_folder(url, "evaluations", needed)
    out = options.out or folder / "plan.json"
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name the file to write, such as {out / 'plan.json'}")
    if out.name in (RESULTS, predictions_name(options.model)):
        raise ValueError(f"--out {out} would replace a file of an evaluation: use another name")
    evaluated = read_evaluation(folder, options.model)
    check_writable(out.parent)
    display = Display()
    if not display.console.is_terminal:
        display.console.width = WIDTH
    if settings:
        show_predictions(settings, evaluated, display)
    if options.interpolate and budget.unit in ("p50", "p99"):
        measured = latency_samples(evaluated.rows, budget.unit)
        if len(measured) < len(evaluated.rows):
            evaluated = interpolate(evaluated, budget.unit)
            say_errors("Latency at batch 1", fit_latency(measured, evaluated.config), display)
    planned = make_plan(evaluated, budget, options.stages)
    show_plan(planned, evaluated.device, display)
    write_plan(planned.plan, out)
    display.say(f"Wrote {out}")
    if planned.points:
        picture = out.with_name("cascade.png")
        display.draw(partial(draw_curve, planned.halves, planned.points, picture))


def needed(names: Collection[str]) -> list[str]:
    """The objects of an evaluation that plans are made of."""
    return [name for name in names if name == RESULTS or ("/" not in name and name.endswith(".npz"))]


def find_budget(options: PlanOptions) -> Budget:
    """The budget that the flags set.

    Raises:
        ValueError: several limits, or a flag without the one that it belongs to.
    """
    if options.max_ms is None and (options.percentile != "p50" or options.interpolate):
        raise ValueError("--percentile and --interpolate belong to --max-ms")
    return make_budget(
        options.max_tokens, options.max_gflops, options.max_ms, options.min_accuracy, options.percentile
    )
