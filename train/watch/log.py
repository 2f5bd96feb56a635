"""The log of a run: metrics.jsonl, skipped.jsonl, audit.jsonl, and their display for trackers and people."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from packvit.common.display import Display
from packvit.common.json_lines import JsonLines
from packvit.common.ranks import Ranks
from packvit.data import LoadedBatch, TrainLoader, named_folders
from packvit.packing import PackedBatch
from packvit.train.config import Config
from packvit.train.step.interface import StepResult
from packvit.train.step.length import Counters
from packvit.train.watch.checks import BadShare, check_finite
from packvit.train.watch.peak import Peaks
from packvit.train.watch.samples import draw_samples
from packvit.train.watch.trackers import Trackers
from packvit.train.watch.window import Came, Coming, Taken, Window

FIRST = 5  # steps that a person sees one by one


class RunLog:
    """The log of a run from the step of `counters` on; every rank calls every method alike.

    Args:
        loader: the run's loader, in the state that it starts with.
        trackers: started here, by the main rank.

    Raises:
        ImportError, ValueError: a tracker cannot be used.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        counters: Counters,
        loader: TrainLoader,
        display: Display,
        trackers: Trackers,
    ) -> None:
        self.config, self.ranks, self.counters, self.loader = config, ranks, counters, loader
        self.display, self.trackers = display, trackers
        if ranks.is_main:
            trackers.start(config, counters.step)
        folder, step = config.folder, counters.step
        self._metrics = JsonLines(folder / "metrics.jsonl", step, ranks.is_main)
        self._skipped = JsonLines(folder / "skipped.jsonl", step, ranks.is_main)
        self._audit = JsonLines(folder / "audit.jsonl", step, ranks.is_main and config.data.audit)
        self.peaks = Peaks(None, None)
        # Since the last line of metrics.jsonl:
        self._window, self._skipped_lines, self._lr = Window(), list[dict](), 0.0
        self._coming: Coming | None = None
        self._nonfinite = 0  # steps in a row
        self._began = step
        self._bad_share = BadShare(config, ranks, loader)

    def add_step(self, taken: Taken, result: StepResult | None, lr: float) -> None:
        """Count a step; the results of the previous one are read now, while the device computes this one.

        Args:
            result: None if no rank had an image.
            lr: AdamW's learning rate.

        Raises:
            ValueError: too many steps in a row had a gradient that is not finite.
        """
        self._lr = lr
        self._window.add_batches(taken)
        self._skipped_lines += [line for loaded in taken.batches for line in loaded.skipped]
        if self.config.data.audit:
            self._write_audit(taken.batches)
        facts = [loaded.facts for loaded in taken.batches]
        self._read()
        if result is not None:
            self._coming = Coming(self.counters.step, facts, result, taken.depth)

    def _read(self) -> None:
        """Count what came of the newest step."""
        if self._coming is None:
            return
        came, self._coming = self._coming.read(), None
        self._window.add_step(came)
        self._nonfinite = self._nonfinite + 1 if came.grad_norm is None else 0
        self.counters.nonfinite_steps += came.grad_norm is None
        check_finite(self._nonfinite, came.step, self.config)
        if came.step <= self._began + FIRST < self._began + self.config.train.log_every:
            self._say_first(came)

    def _say_first(self, came: Came) -> None:
        """One of the first steps, so that nobody has to wait for the first line to see that all is well."""
        loss = "not finite" if came.losses is None else f"{came.losses.mean():.3f}"
        self.display.say(f"step {came.step}  loss {loss}  {time.perf_counter() - self._window.start:.1f} s")

    def end_window(self, validate: Callable[[], dict[str, Any]] | None = None) -> None:
        """Write a line of metrics.jsonl about the steps since the last line, if there are any.

        Args:
            validate: returns the `validation` entry of the line; its time does not count as time of a step.

        Raises:
            ValueError: too many samples are bad, or too many steps in a row had no finite gradient.
        """
        self._read()
        if self._window.batches.sequences == 0:
            return
        self.skip()
        line = self._window.summary(self.ranks, self.peaks)
        line |= {"lr": self._lr, "shrunk": int(*self.ranks.sum([self.loader.shrunk()]))}
        if validate is not None:
            line["validation"] = validate()
        self.write(line)
        self._window = Window()
        self._bad_share.check()

    def picture(self, batch: PackedBatch) -> None:
        """Draw the run's first sequences."""
        if self.ranks.is_main:
            path = self.config.folder / "samples/step-0.png"
            data = self.config.data
            named = named_folders(data.shards, data.fetch)
            classes = next((names for _, names in named if names), None)
            self.display.draw(partial(draw_samples, batch.to("cpu"), path, classes=classes))
            self.trackers.image(0, "samples", path)

    def lose(self, skipped: Sequence[dict]) -> None:
        """Log samples that this rank could not use, when they end the run."""
        for line in (*self._skipped_lines, *skipped):
            self._skipped.write({"step": self.counters.step} | line)

    def skip(self) -> None:
        """Log samples that any rank could not use since the last call."""
        for line in (line for part in self.ranks.gather(self._skipped_lines) for line in part):
            self._skipped.write({"step": self.counters.step} | line)
        self._skipped_lines = []

    def _write_audit(self, batches: Sequence[LoadedBatch]) -> None:
        """Write down the keys of a step's images, in the order of the run's batches."""
        shares = self.ranks.gather([loaded.batch.keys for loaded in batches])
        # Rank r's a-th batch is number a * ranks + r of the step.
        keys = [key for share in zip(*shares, strict=True) for batch in share for key in batch]
        self._audit.write({"step": self.counters.step, "keys": keys})

    def write(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl, completed by the counters."""
        line = asdict(self.counters) | line
        self._metrics.write(line)
        self.trackers.log(line)
        loss = "not finite" if line["loss"] is None else f"{line['loss']:.3f}"
        state = f"loss {loss}  {line['images_per_s']:,.0f} images/s  padding {line['padding_fraction']:.2%}"
        done = getattr(self.counters, self.config.train.length.unit)
        self.display.update(done, self.counters.step, state)
