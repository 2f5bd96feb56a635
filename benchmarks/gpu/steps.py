"""Whole training steps without a loader: an engine, a task, batches that are on the device already."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from packvit.common.ranks import Ranks
from packvit.data import LoadedBatch
from packvit.models import ViTConfig, preset
from packvit.packing import ImageFacts, PackedBatch
from packvit.train.config import Config, TrainConfig
from packvit.train.step.interface import StepBatches, StepResult, TrainedModule
from packvit.train.step.kernels import choose_kernels
from packvit.train.step.optim import OptimConfig
from packvit.train.step.step import Engine, train_step
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.start import make_module

NO_FACTS = ImageFacts(*(np.empty(0) for _ in ImageFacts._fields))  # which only the log asks for
TINY: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "num_classes": 1000, "patch_buffer": 16}


class Size(NamedTuple):
    """A batch: `rows` sequences of `seq_len` slots."""

    rows: int
    seq_len: int

    @property
    def tokens(self) -> int:
        """Slots of the batch."""
        return self.rows * self.seq_len


def load(batch: PackedBatch) -> LoadedBatch:
    """A batch as a loader gives it."""
    return LoadedBatch(batch, NO_FACTS)


@dataclass
class Trainer:
    """A model with all that trains it.

    Args:
        engine, task, config: as a run has them.
        number: of the next step.
        choose: whether the first step on a GPU chooses the attention kernels, as a run does.
    """

    engine: Engine
    task: Classification
    config: Config
    number: int = 0
    choose: bool = True

    def step(self, *batches: PackedBatch) -> StepResult:
        """One optimizer step on batches of any device."""
        if self.choose and self.number == 0 and self.engine.ranks.device.type == "cuda":
            choose_kernels(self.engine, batches[0].to(self.engine.ranks.device))
        images = sum(batch.num_images for batch in batches)
        result = train_step(
            self.engine, self.task, StepBatches([load(b) for b in batches], images), self.number
        )
        self.number += 1
        return result

    def gradients(self, batch: PackedBatch) -> Tensor:
        """Forward, loss and backward alone; the losses."""
        self.engine.module.zero_grad(set_to_none=True)
        return self.task.backward(self.engine, StepBatches([load(batch)], batch.num_images))

    def flops(self, batch: PackedBatch) -> int:
        """FLOPs of a step on a batch in host memory, forward and backward, without recomputation."""
        return self.task.flops(load(batch))


def model_config(name: str, tiny: bool, **fields: Any) -> ViTConfig:
    """A size by its name; `tiny` stands for every size in a trial on a CPU."""
    return ViTConfig(**{**TINY, **fields}) if tiny else preset(name, **fields)


def plan(
    model: ViTConfig,
    compiled: bool = False,
    kind: Literal["adamw", "muon"] = "adamw",
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "bf16",
    **train: Any,
) -> Config:
    """The configuration of a run.

    Args:
        train: further fields of TrainConfig.
    """
    options = TrainConfig(precision=precision, compile="on" if compiled else "off", **train)
    return Config(model=model, train=options, optim=OptimConfig(kind=kind, warmup=0))


def make_trainer(config: Config, device: torch.device, module: TrainedModule | None = None) -> Trainer:
    """A model in training on one rank.

    Args:
        module: what is trained; None makes a new one, on the device, where large models are drawn faster.
    """
    task = Classification(config)
    if module is None:
        with torch.device(device):
            module = make_module(config, task)
    engine = Engine(module, config.train, config.optim, Ranks(0, 1, device), config.seed)
    return Trainer(engine, task, config)


def number_of(value: Tensor | float) -> float:
    """A number that may still be on the device; waits for it."""
    return float(value)
