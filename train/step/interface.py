"""What a step is given and what it gives: the trained module, its batches, the result."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from packvit.data import LoadedBatch
from packvit.models import PackedViT
from packvit.packing import BatchStats


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

        FSDP shards each as one part. They learn with AdamW, are not compiled and have no moving average.
        """
        return []


@dataclass
class StepBatches:
    """What one step of this rank trains on.

    Args:
        batches: with the teachers' views of the same images; as many on every rank.
        stats: of all batches.
        flops: of training on them.
        images, tokens, gflops: over all ranks.
    """

    batches: Sequence[LoadedBatch]
    stats: BatchStats = field(default_factory=BatchStats)
    flops: float = 0.0
    images: float = 0.0
    tokens: float = 0.0
    gflops: float = 0.0


class StepResult(NamedTuple):
    """What came of a step.

    losses: float32 [N], of this rank's images, on its device.
    grad_norm: before clipping, over all ranks.
    finite: whether the weights were updated.
    """

    losses: Tensor
    grad_norm: float
    finite: bool
