"""A task: what a run learns from, the heads on the encoder, the loss, and the evaluators."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from packvit.data import LoadedBatch, Target
from packvit.evaluate import MakeEvaluator
from packvit.models import PackedViT
from packvit.train.step.interface import StepBatches, TrainedModule
from packvit.train.step.step import Engine


class Task(Protocol):
    """What a run does with a model.

    Attributes:
        targets: kinds of targets that every image of training must have, by name.
        teachers: (patch size, resolution in pixels) of further views of each image, which come with a batch.
        eval_targets: kinds of targets that every image of validation must have, by name.
        evaluators: functions that make the model's evaluators, each from the set. All ranks call them
            together when the run validates and when training has ended, so an evaluator that needs a head can
            be bound to the task and gather it. They must not change the modes and the gradients of the task's
            modules.
    """

    targets: Mapping[str, Target]
    teachers: tuple[tuple[int, int], ...]
    eval_targets: Mapping[str, Target]
    evaluators: Sequence[MakeEvaluator]

    def build(self, model: PackedViT) -> TrainedModule:
        """The model with the heads that the task adds to it, initialised from torch's random state."""
        ...

    def initial(self) -> tuple[PackedViT, str] | None:
        """The model whose weights the trained one starts with, and its name; None if the task has none."""
        ...

    def prepare(self, engine: Engine) -> None:
        """Called once, when the module is on its device."""
        ...

    def flops(self, loaded: LoadedBatch, depth: int | None = None) -> int:
        """FLOPs of training on a batch in host memory, forward and backward, all models together.

        Args:
            depth: number of blocks of the trained model that run; None: all.
        """
        ...

    def backward(self, engine: Engine, step: StepBatches) -> Tensor:
        """The gradient of the loss of a whole step: all batches of all ranks.

        Losses computed for each image alone use `engine.backward_by_image`, which takes their mean over the
        images of all ranks. Others see all batches and ranks and call `engine.backward` themselves; a task
        that runs the model twice on a batch, to embed and to replay, restores torch's random state in
        between.

        Returns:
            The loss of each image of this rank for the log, float32 [N], in the batches' order.
        """
        ...
