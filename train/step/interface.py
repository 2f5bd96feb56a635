"""The inputs and outputs of a step: the trained module, its batches, the result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from packvit.data import LoadedBatch
from packvit.models import PackedViT, describe_model, save_model


class TrainedModule(nn.Module):
    """Everything that is trained: a model, and the heads that a task adds to it.

    Args:
        model: the part that is exported. The heads are only in the checkpoint.
    """

    def __init__(self, model: PackedViT) -> None:
        super().__init__()
        self.model = model

    def heads(self) -> list[nn.Module]:
        """The parts besides the model that have parameters, each with its own forward method.

        FSDP shards each as one part, along the first dimension of its parameters, and both it and DDP take
        the gradient from the result of `forward`. A single trained number therefore has the shape (1,), is in
        a module of its own, and is among the outputs. Heads are trained with AdamW, and have a moving average
        if the model has one; a text tower is compiled if the model is.
        """
        return []

    def start_heads(self, path: Path) -> None:
        """Initialise the heads from a model that has weights for them; by default, no model has any.

        Args:
            path: path of the model, as for load_model, whose weights `model` has received.

        Raises:
            ValueError: they do not fit.
        """

    def describe(self) -> list[str]:
        """Lines that describe what is trained, printed at the start of a run; the first describes the
        model."""
        config = self.model.config
        return [f"Model: {describe_model(self.model)}, {config.num_classes} classes"]

    def save(self, model: PackedViT, heads: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Write the trained weights in a loadable form; only the model, unless a task keeps more.

        Args:
            model: the trained model, not sharded, or its moving average if there is one.
            heads: the state dicts of `heads()`, likewise.
            folder: the run's folder.
        """
        save_model(model, folder)


class StepBatches(NamedTuple):
    """The data of one step on this rank.

    batches: the batches, with the teachers' views of the same images; the same number on every rank.
    images: number of images in the step's batches on all ranks.
    """

    batches: Sequence[LoadedBatch]
    images: float


class StepResult(NamedTuple):
    """The results of a step, on the device: reading them means waiting for the step.

    losses: float32 [N], losses of this rank's images.
    grad_norm: float32 [], before clipping, over all ranks. A step whose norm is not finite changed nothing.
    reported: further values that the task reports, by name, float32 [n] each; the same names on all ranks.
    """

    losses: Tensor
    grad_norm: Tensor
    reported: Mapping[str, Tensor] = MappingProxyType({})
