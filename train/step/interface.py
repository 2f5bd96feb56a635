"""What a step is given and what it gives: the trained module, its batches, the result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from packvit.data import LoadedBatch
from packvit.models import PackedViT, describe_model, save_model


class TrainedModule(nn.Module):
    """All that is trained: a model, and the heads that a task puts on it.

    Args:
        model: what is exported. The heads belong to the checkpoint only.
    """

    def __init__(self, model: PackedViT) -> None:
        super().__init__()
        self.model = model

    def heads(self) -> list[nn.Module]:
        """The parts beside the model that have parameters, each with a forward method of its own.

        FSDP shards each as one part, along the first dimension of its parameters, and both it and DDP take
        the gradient from what `forward` returns: a lone number to learn has the shape (1,), stands in a
        module of its own, and is among the outputs. Heads learn with AdamW, and have a moving average where
        the model has one; a text tower is compiled where the model is.
        """
        return []

    def start_heads(self, path: Path) -> None:
        """Start the heads with what a model has for them; by default nothing of it is for them.

        Args:
            path: of the model, as load_model reads it, whose weights `model` has been given.

        Raises:
            ValueError: they do not fit.
        """

    def describe(self) -> list[str]:
        """What is trained, in lines that a run begins with; the first ends with the model."""
        config = self.model.config
        return [f"Model: {describe_model(self.model)}, {config.num_classes} classes"]

    def save(self, model: PackedViT, heads: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Write what is trained for others to load; the model alone, unless a task keeps more.

        Args:
            model: the trained one, whole; its moving average where there is one.
            heads: the state dicts of `heads()`, whole, in the same way.
            folder: the run's.
        """
        save_model(model, folder)


class StepBatches(NamedTuple):
    """What one step of this rank trains on.

    batches: with the teachers' views of the same images; as many on every rank.
    images: in the step's batches of all ranks.
    """

    batches: Sequence[LoadedBatch]
    images: float


class StepResult(NamedTuple):
    """What came of a step, on the device: to read it is to wait for the step.

    losses: float32 [N], of this rank's images.
    grad_norm: float32 [], before clipping, over all ranks. A step whose norm is not finite changed nothing.
    reported: what the task reports besides, by name, float32 [n] each; the same names on all ranks.
    """

    losses: Tensor
    grad_norm: Tensor
    reported: Mapping[str, Tensor] = MappingProxyType({})
