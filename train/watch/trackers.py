"""Trackers: the log of a run in TensorBoard or Weights & Biases; metrics.jsonl is written in any case.

A resumed run continues the same curves. What a killed run logged after its last checkpoint is hidden in
TensorBoard, and logged a second time to Weights & Biases, at the same step.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from packvit.common.optional import need
from packvit.train.config import Config, plain_config


class Tracker(Protocol):
    """One place where a run is shown."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Numbers after a step, by name; a slash in a name makes groups."""

    def image(self, step: int, name: str, path: Path) -> None:
        """A picture after a step."""

    def close(self, failed: bool) -> None:
        """Write everything that is not written yet; `failed` if the run ended with an error."""


class TensorBoard:
    """Event files in the run's folder, under `tensorboard`; `tensorboard --logdir RUN` shows them.

    Args:
        step: the step after which the run continues; what was logged for later steps is hidden.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, config: Config, step: int) -> None:
        module = need("torch.utils.tensorboard", "log", "train.trackers names tensorboard, which is missing")
        self.writer = module.SummaryWriter(config.folder / "tensorboard", purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """See Tracker."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def image(self, step: int, name: str, path: Path) -> None:
        """See Tracker."""
        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        """See Tracker."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, in project `packvit` or $WANDB_PROJECT.

    `wandb-id` in the run's folder names it, and a resumed run continues with it.

    Raises:
        ImportError: wandb is not installed.
        ValueError: it does not start, for example because a login is missing.
    """

    def __init__(self, config: Config, step: int) -> None:
        self.wandb = need("wandb", "wandb", "train.trackers names wandb, which is missing")
        note = config.folder / "wandb-id"
        if not note.exists():
            note.write_text(secrets.token_hex(8))
        try:
            self.run = self.wandb.init(
                project=os.environ.get("WANDB_PROJECT", "packvit"),
                name=config.run_dir.name,
                dir=config.folder,
                id=note.read_text().strip(),
                resume="allow",
                config=plain_config(config),
            )
        except self.wandb.Error as error:
            raise ValueError(f"train.trackers names wandb, which did not start: {error}") from error
        # Its own count of steps cannot go back to a checkpoint.
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        """See Tracker."""
        self.run.log(values | {"step": step})

    def image(self, step: int, name: str, path: Path) -> None:
        """See Tracker."""
        self.run.log({name: self.wandb.Image(str(path)), "step": step})

    def close(self, failed: bool) -> None:
        """See Tracker."""
        self.run.finish(exit_code=int(failed))


KINDS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Trackers:
    """All trackers of a run, a context manager; none before `start`, which only the first rank calls."""

    def __init__(self) -> None:
        self.trackers: Sequence[Tracker] = ()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for tracker in self.trackers:
            tracker.close(error is not None)

    def start(self, config: Config, step: int) -> None:
        """Open the trackers of `train.trackers`; the run continues after `step`.

        Raises:
            ImportError, ValueError: one cannot be used; says why.
        """
        self.trackers = [KINDS[name](config, step) for name in config.train.trackers]

    def log(self, line: dict[str, Any]) -> None:
        """Log numbers after a step, given as a line of metrics.jsonl; those of a group are named
        `group/name`, and unknown values are left out."""
        for tracker in self.trackers:
            tracker.log(line["step"], flat_numbers(line))

    def image(self, step: int, name: str, path: Path) -> None:
        """Log a picture, if one was drawn."""
        for tracker in self.trackers if path.exists() else ():
            tracker.image(step, name, path)


def flat_numbers(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested dictionaries, as {"outer/inner": number}, without `step`."""
    flat = {}
    for name, value in line.items():
        if isinstance(value, dict):
            flat |= flat_numbers(value, f"{prefix}{name}/")
        elif value is not None and name != "step":
            flat[prefix + name] = value
    return flat
