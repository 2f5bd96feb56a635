"""Validation during training: the model at a few settings, on some of the validation images.

It measures the same values as the evaluation at the end, with the same weights: the moving average if there
is one. All ranks share the images. It uses neither the random state of training nor its data, so a run
computes the same with it as without.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import nn

from packvit.common.display import Display
from packvit.common.json_lines import finite
from packvit.common.ranks import Ranks
from packvit.data import EvalSet
from packvit.evaluate import MAIN, Evaluation, Subject, measured, summarise, words
from packvit.models import PackedViT
from packvit.train.config import Config
from packvit.train.step.length import Counters
from packvit.train.step.step import Engine
from packvit.train.tasks.task import Task
from packvit.train.validate.best import BestModel
from packvit.train.validate.settings import eval_packing, validation_settings


class Validation:
    """Validates a run every `eval.every` steps; every rank calls every method alike. Part of a checkpoint.

    The best model is the one with the highest mean, over the settings, of the first value that the task
    measures. If settings or images have changed on a resume, it starts anew.

    Args:
        images: the run's validation set.
        display: shows the results.

    Attributes:
        best: the highest value so far, or None.
        best_step: the step after which it was measured.
        since: number of validations that have followed.
    """

    def __init__(self, config: Config, task: Task, images: EvalSet, ranks: Ranks, display: Display) -> None:
        self.config, self.task, self.ranks, self.display = config, task, ranks, display
        self.all_images = len(images.headers)
        self.images = images.some(config.eval.images)
        self.settings = validation_settings(config)
        names = [setting.name for setting in self.settings]
        self.of = {"settings": names, "samples": self.images.fingerprint()["samples"]}
        self.kept = BestModel(config.folder)
        self.best: float | None = None
        self.best_step, self.since = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """See Part; `of` identifies what the value was measured on."""
        return {"of": self.of, "best": self.best, "best_step": self.best_step, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Part."""
        if state["of"] != self.of:
            self.display.say("Validation now has other settings or images: the best value is discarded")
            return
        self.best, self.best_step, self.since = state["best"], state["best_step"], state["since"]

    def describe(self) -> str:
        """A line that describes it."""
        names = " ".join(self.of["settings"])
        text = (
            f"Validation: every {self.config.eval.every} steps, {len(self.images.headers):,} of "
            f"{self.all_images:,} images at {names}; {self.kept.folder} keeps the best model"
        )
        patience = self.config.eval.patience
        return f"{text}, and {patience} without a better one end the run" if patience else text

    def due(self, step: int, last: bool) -> bool:
        """Whether to validate after a step; `last` if the run ends with it."""
        return last or step % self.config.eval.every == 0

    @property
    def stopped(self) -> bool:
        """Whether the run ends early: `eval.patience` validations in a row were no better."""
        return 0 < self.config.eval.patience <= self.since

    def validate(self, engine: Engine, counters: Counters) -> dict[str, Any]:
        """Measure the model after a step, and keep it if it is the best.

        Returns:
            {measure: mean over the settings, setting: {name: value}}; empty on ranks other than the main one.
        """
        device = self.ranks.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            model = engine.whole()
            with evaluating(model):
                rows = self._measure(model, counters.step)
            measure, value, values = None, None, {}
            if self.ranks.is_main:
                measure = measured(rows[0])[0]
                values = {row["setting"]: row[measure] for row in rows}
                value = mean_of(list(values.values()))
            measure, value = self.ranks.gather((measure, value))[0]
            better = value is not None and (self.best is None or value > self.best)
            self.since = 0 if better else self.since + 1
            if better:
                self.best, self.best_step = value, counters.step
                heads = engine.whole_heads()
                note = {"step": counters.step, "images_seen": counters.images_seen, "measure": measure}
                note |= {"value": value, "settings": values, "images": len(self.images.headers)}
                if self.ranks.is_main:
                    self.kept.replace(note, partial(engine.module.save, model, heads))
        if not self.ranks.is_main:
            return {}
        self._say(counters.step, measure, value, values)
        return {measure: value} | {row["setting"]: numbers_of(row) for row in rows}

    def _measure(self, model: PackedViT, step: int) -> list[dict[str, Any]]:
        """The rows of all settings, without NaN; none on ranks other than the main one."""
        config, out = self.config, self.config.folder / ".validation"
        if self.ranks.is_main:
            shutil.rmtree(out, ignore_errors=True)  # of a run that was killed while it validated
        self.ranks.barrier()
        evaluators = [make(self.images) for make in self.task.evaluators]
        subject = Subject(config.run_dir.name, config.place, model, f"step {step}", evaluators)
        # Its progress stays unseen: a terminal has room for one bar, and training has it.
        quiet = Display(quiet=True)
        packing, workers, precision = eval_packing(config), config.data.workers, config.train.precision
        evaluation = Evaluation(out, packing, self.ranks, workers, precision, quiet)
        store = evaluation.collect(subject, self.images, self.settings)
        rows = []
        if self.ranks.is_main:
            rows = [finite(summarise(store, subject, setting, MAIN).row) for setting in self.settings]
        self.ranks.barrier()  # all have looked whether the store is complete
        if self.ranks.is_main:
            shutil.rmtree(out, ignore_errors=True)
        return rows

    def _say(self, step: int, measure: str, value: float | None, values: dict[str, float | None]) -> None:
        """What came out, for a person."""
        text = f"step {step}  validation: {words(measure)} {percent(value)}"
        if len(values) > 1:
            text += f" ({', '.join(f'{name} {percent(part)}' for name, part in values.items())})"
        best = (
            f"the best is {percent(self.best)} of step {self.best_step}" if self.since else "the best so far"
        )
        self.display.say(f"{text}; {best}")

    def conclude(self) -> None:
        """Report which model was the best, and whether the run ends early because no better one has
        followed."""
        if self.stopped:
            patience = self.config.eval.patience
            self.display.say(
                f"Ended early, eval.patience={patience}: no later validation was better than the best"
            )
        if self.best is not None:
            self.display.say(
                f"Best: {percent(self.best)} at step {self.best_step}, kept in {self.kept.folder}"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in eval mode; afterwards every part returns to its own mode, because frozen parts have
    theirs."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def mean_of(values: list[float | None]) -> float | None:
    """The mean; None if a value is not known."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def numbers_of(row: dict[str, Any]) -> dict[str, float | None]:
    """The evaluators' values of a row that a curve can show: numbers, or None if unknown."""
    return {name: row[name] for name in measured(row) if not isinstance(row[name], list)}


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "unknown" if value is None else f"{value:.1%}"
