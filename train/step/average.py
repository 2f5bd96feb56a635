"""The moving average of all trained weights: those of the model, and of the heads that a task adds to it."""

import copy
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from packvit.train.step.interface import TrainedModule
from packvit.train.step.muon import approach, local

MODEL, HEADS = "average", "average_heads"  # in a checkpoint


class Average:
    """Copies of a model and its heads, in eval mode and without gradients, which follow their weights.

    Args:
        module: on its device, and not sharded over ranks yet.
    """

    def __init__(self, module: TrainedModule) -> None:
        self.model = copy.deepcopy(module.model)
        self._heads = [copy.deepcopy(head) for head in module.heads()]
        for part in (self.model, *self._heads):
            part.requires_grad_(False).eval()

    def heads(self) -> list[nn.Module]:
        """The averages of the module's `heads()`, in their order."""
        return self._heads

    def update(self, module: TrainedModule, decay: float, updates: int, skip: Tensor | None) -> None:
        """Follow the weights of `module`, from which this was made; see `update_ema`."""
        if isinstance(self.model, FSDPModule):
            self.model.reshard()  # as a teacher it stays gathered after its forward pass
        own, theirs = (
            chain.from_iterable(part.parameters() for part in (whole.model, *whole.heads()))
            for whole in (self, module)
        )
        update_ema(own, theirs, decay, updates, skip)

    def state_dict(self) -> dict[str, Any]:
        """All weights, under separate keys in the engine's state."""
        state: dict[str, Any] = {MODEL: self.model.state_dict()}
        return state | ({HEADS: nn.ModuleList(self._heads).state_dict()} if self._heads else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the weights by those of a state that `state_dict` returned."""
        self.model.load_state_dict(state[MODEL])
        if self._heads:
            nn.ModuleList(self._heads).load_state_dict(state[HEADS])


@torch.no_grad()
def update_ema(
    average: Iterable[Tensor], current: Iterable[Tensor], decay: float, updates: int, skip: Tensor | None
) -> None:
    """average <- decay * average + (1 - decay) * current, in place.

    The decay grows with the number of `updates` so far, so that early averages forget the initialisation. If
    `skip`, float32 [] on the device, is 1, nothing changes.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    approach([local(each) for each in average], [local(each) for each in current], 1 - decay, skip)
