"""A whole evaluation: models over sets of images, at all settings, into a folder."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from packvit.common.device import device_name, make_autocast
from packvit.data import Corruption, EvalSet
from packvit.evaluate.checks import check_pieces, check_settings
from packvit.evaluate.folder import Predictions, ResultsFolder
from packvit.evaluate.measures.robustness import summarise_corruptions
from packvit.evaluate.page.page import write_report
from packvit.evaluate.page.pictures import ShardPictures
from packvit.evaluate.report import measured, show_corruptions, show_results
from packvit.evaluate.setting import Setting
from packvit.evaluate.sweep.cost import COSTS, measure_costs
from packvit.evaluate.sweep.favoured import favoured_patch_size
from packvit.evaluate.sweep.grid import Evaluation, Subject, summarise
from packvit.evaluate.sweep.store import ChunkStore

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """What an evaluation shall find out.

    Args:
        sets: of images, by name; costs and the patch sizes of `tokens` are those of the first.
        settings: of the grid; at least one.
        tokens: for each of them the largest grid of at most so many tokens is evaluated too, at the patch
            size that the grid's results favour; see `favoured_patch_size`.
        cost: whether each setting's costs are measured.
        keep: results that are there already are kept under another name; see `ResultsFolder.finish`.
        corruptions: each of them makes one more set of the first, named as it is.
        keep_corrupted: whether there are predictions of those sets.
        classes: names of the classes; None: those beside the shards of the first set.
    """

    sets: Mapping[str, EvalSet]
    settings: Sequence[Setting]
    tokens: Sequence[int] = ()
    cost: bool = True
    keep: bool = False
    corruptions: Sequence[Corruption] = ()
    keep_corrupted: bool = False
    classes: Sequence[str] | None = None

    @property
    def every_set(self) -> dict[str, EvalSet]:
        """The sets and the corrupted ones, which share the headers of the first."""
        first = next(iter(self.sets.values()))
        return {**self.sets, **{one.name: first.altered(one) for one in self.corruptions}}

    @property
    def brief(self) -> frozenset[str]:
        """The sets of which rows are kept, and nothing of each image."""
        return frozenset(() if self.keep_corrupted else (one.name for one in self.corruptions))

    @property
    def possible(self) -> list[Setting]:
        """All settings that may be evaluated."""
        sizes = dict.fromkeys(setting.patch_size for setting in self.settings)
        protocol = self.settings[0].protocol
        within = [Setting(p, tokens=n, protocol=protocol) for n, p in product(self.tokens, sizes)]
        return [*self.settings, *within]


def evaluate(evaluation: Evaluation, subjects: Sequence[Subject], asked: Asked) -> Rows:
    """Evaluate one model after the other, write what came out to a folder, and show it; every rank calls it.

    Returns:
        The rows of results.json; none on ranks other than the main one.

    Raises:
        ValueError: settings beyond memory, before any work; a set without an image that can be decoded.
    """
    ranks, display = evaluation.ranks, evaluation.display
    for subject in subjects:
        check_settings(subject.model.config, asked.possible, ranks.device)
    check_pieces(evaluation.packing, asked.settings)
    folder = ResultsFolder(evaluation.out) if ranks.is_main else None
    several = len(subjects) > 1
    rows: Rows = []
    skipped = [line for images in asked.sets.values() for line in images.skipped]
    for subject in subjects:
        if several:
            display.say(f"Evaluating {subject.name}")
        run = _SubjectRun(evaluation, subject, asked, folder, several)
        run.measure_all()
        rows += run.rows
        skipped += run.skipped
        if several:
            subject.model.to("cpu")  # one model on the device at a time
    if folder is not None:
        corrupted = summarise_corruptions(rows, measured(rows[0])[0]) if asked.corruptions else []
        results = describe(evaluation, subjects, asked) | {"rows": rows}
        results |= {"corruptions": corrupted} if corrupted else {}
        unique = {tuple(line.values()): line for line in skipped}
        rows = folder.finish(results, list(unique.values()), display, asked.keep)
        write_report(evaluation.out, ShardPictures(next(iter(asked.sets.values())).shards))
        show_results([row for row in rows if row["set"] in asked.sets], display)
        show_corruptions(corrupted, measured(rows[0])[0], display)
    ranks.barrier()
    return rows


class _SubjectRun:
    """One model's part of an evaluation.

    Attributes:
        rows: of results.json, on the main rank.
        skipped: images that could not be decoded.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        subject: Subject,
        asked: Asked,
        folder: ResultsFolder | None,
        several: bool,
    ) -> None:
        self.evaluation, self.subject, self.asked = evaluation, subject, asked
        self.folder, self.name = folder, subject.name if several else None
        self.sets = asked.every_set
        self.rows: Rows = []
        self.skipped: list[dict] = []

    def measure_all(self) -> None:
        """Every set at every setting."""
        settings = list(self.asked.settings)
        for number, name in enumerate(self.sets):
            kept = self.folder if name not in self.asked.brief else None
            opened = kept.predictions(self.name, name) if kept else nullcontext()
            with opened as predictions:
                self._measure(name, settings, predictions)
                if number == 0 and self.asked.tokens:
                    chosen = self._choose()
                    self._measure(name, chosen, predictions)
                    settings += chosen

    def _measure(self, name: str, settings: Sequence[Setting], predictions: Predictions | None) -> None:
        """One pass over a set."""
        evaluation, brief = self.evaluation, name in self.asked.brief
        store = evaluation.collect(self.subject.on(name), self.sets[name], settings, brief)
        self.skipped += store.skipped()
        if brief:
            evaluation.ranks.barrier()  # the main rank may finish the store only when no other reads it
        if self.folder is None:
            return
        rows = store.result()
        if rows is None:
            rows = self._summarise(store, name, settings, predictions)
            if brief:
                store.finish(rows)
        self.rows += [{"model": self.name, **row} if self.name else row for row in rows]

    def _summarise(
        self, store: ChunkStore, name: str, settings: Sequence[Setting], predictions: Predictions | None
    ) -> Rows:
        """The rows of a set; what is known of each image goes to `predictions`."""
        images, subject = self.sets[name], self.subject.on(name)
        costs = [dict.fromkeys(COSTS)] * len(settings)
        if self.asked.cost and name == next(iter(self.sets)):
            self.evaluation.display.say(f"Measuring the costs of {len(settings)} settings")
            autocast = make_autocast(self.evaluation.precision, self.evaluation.ranks.device)
            costs = measure_costs(subject.model, images, settings, self.evaluation.tokens, autocast)
        rows: Rows = []
        for setting, cost in zip(settings, costs, strict=True):
            found = summarise(store, subject, setting, name)
            if predictions is not None:
                predictions.add(images, setting.name, found.arrays, found.shared)
            rows.append(found.row | cost)
        return rows

    def _choose(self) -> list[Setting]:
        """For each number of tokens the setting that the grid's results favour; the main rank decides."""
        chosen = None
        if self.folder is not None:
            measure, protocol = measured(self.rows[0])[0], self.asked.settings[0].protocol
            chosen = [
                Setting(favoured_patch_size(self.rows, n, measure), tokens=n, protocol=protocol)
                for n in dict.fromkeys(self.asked.tokens)
            ]
            names = ", ".join(setting.name for setting in chosen)
            self.evaluation.display.say(f"The grid favours {names}")
        return self.evaluation.ranks.gather(chosen)[0]


def describe(evaluation: Evaluation, subjects: Sequence[Subject], asked: Asked) -> dict[str, Any]:
    """What results.json says of models, device and classes."""
    models = [
        {
            **({"name": subject.name} if len(subjects) > 1 else {}),
            "path": subject.path,
            "hash": subject.weights,
            "loss": subject.loss,
            "num_classes": subject.num_classes,
            "config": subject.model.config.to_dict(),
            **subject.facts,
        }
        for subject in subjects
    ]
    classes = asked.classes
    if classes is None and all(subject.num_classes for subject in subjects):
        classes = next(iter(asked.sets.values())).class_names()
    return {
        "model": models if len(models) > 1 else models[0],
        "device": {"name": device_name(evaluation.ranks.device), "threads": torch.get_num_threads()},
        "classes": classes,
    }
