"""What a run writes down: metrics.jsonl, skipped.jsonl, audit.jsonl, and what trackers and people see of
them."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from packvit.common.display import Display
from packvit.common.json_lines import JsonLines
from packvit.common.ranks import Ranks
from packvit.data import LoadedBatch
from packvit.packing import PackedBatch
from packvit.train.config import Config
from packvit.train.step.length import Counters
from packvit.train.watch.samples import draw_samples
from packvit.train.watch.trackers import Trackers


class RunLog:
    """The log of a run from the step of `counters` on; every rank calls every method alike.

    Args:
        trackers: started here, by the main rank.

    Raises:
        ImportError, ValueError: a tracker cannot be used.
    """

    def __init__(
        self, config: Config, ranks: Ranks, counters: Counters, display: Display, trackers: Trackers
    ) -> None:
        self.config, self.ranks, self.counters = config, ranks, counters
        self.display, self.trackers = display, trackers
        if ranks.is_main:
            trackers.start(config, counters.step)
        folder, step = config.run_dir, counters.step
        self._metrics = JsonLines(folder / "metrics.jsonl", step, ranks.is_main)
        self._skipped = JsonLines(folder / "skipped.jsonl", step, ranks.is_main)
        self._audit = JsonLines(folder / "audit.jsonl", step, ranks.is_main and config.data.audit)

    def picture(self, batch: PackedBatch) -> None:
        """Draw the run's first sequences."""
        if self.ranks.is_main:
            path = self.config.run_dir / "samples/step-0.png"
            self.display.draw(partial(draw_samples, batch.to("cpu"), path))
            self.trackers.image(0, "samples", path)

    def lose(self, skipped: Sequence[dict]) -> None:
        """Write down samples that this rank could not use, when the run ends with them."""
        for line in skipped:
            self._skipped.write({"step": self.counters.step} | line)

    def skip(self, skipped: Sequence[dict]) -> None:
        """Write down samples that any rank could not use since the last call."""
        for line in (line for part in self.ranks.gather(list(skipped)) for line in part):
            self._skipped.write({"step": self.counters.step} | line)

    def audit(self, batches: Sequence[LoadedBatch]) -> None:
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
