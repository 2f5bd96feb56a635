"""One optimizer step: forward, loss, backward, clip, update, on one rank of all.

The gradient of a step is the mean over all images of the step, over all ranks and accumulated batches. A step
whose gradient is not finite changes nothing; the device decides this without the host. `ddp` keeps a whole
copy of everything on each rank. `fsdp` (fully_shard, FSDP2) divides weights, gradients, moving average and
optimizer state into equal parts; a block is gathered just before it runs.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from packvit.common.device import choose_precision, make_autocast, wants_compiling
from packvit.common.ranks import Ranks
from packvit.data import LoadedBatch
from packvit.models import PackedViT, TextTower
from packvit.packing import derive_seed
from packvit.train.step.average import Average
from packvit.train.step.interface import StepBatches, StepResult, TrainedModule
from packvit.train.step.muon import local
from packvit.train.step.optim import OptimConfig, freeze, make_optimizers
from packvit.train.step.schedule import set_lr
from packvit.train.step.shard import cut, replicate, settle


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step is computed; part of `train.*`.

    Args:
        precision: precision of matrix products; auto is bf16 on CUDA and fp32 on a CPU; fp16 scales its
            gradients; tf32 is fp32, but products on CUDA round their factors to 10 bits of mantissa.
        parallel: how several ranks share the model: `ddp` copies it, `fsdp` shards it.
        ema: decay of the weights' moving average, which is evaluated and saved as the model; 0: no average.
        compile: whether torch.compile fuses the per-token parts of blocks; auto is on for CUDA and off for a
            CPU, where a C++ compiler is needed. Sums are rounded in another order, so it changes bits.
        deterministic: use only CUDA kernels that give the same bits each time, which may be slower.
        attention: attention backend, see docs/models.md; auto measures which is the fastest on a GPU.
        residual: dtype of the stream that blocks read and add to; bf16 moves half the bytes and costs digits.
        depths: numbers of blocks, one of which is drawn for each step: only so many blocks run, and the
            single head reads the output of the last one (FlexiViT 7, flexible depth). Empty: all blocks run
            in every step.
    """

    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    ema: float = field(default=0.0, metadata={"resume": "switch"})
    compile: Literal["auto", "on", "off"] = "auto"
    deterministic: bool = False
    attention: Literal["auto", "varlen", "xformers", "flex", "sdpa"] = "auto"
    residual: Literal["fp32", "bf16"] = "fp32"
    depths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise ValueError(f"train.ema={self.ema} must lie in [0, 1)")


class Engine:
    """Forward, backward and update of a model over all ranks.

    `tf32` and `train.deterministic` are settings of the process: see `packvit.common.device.arithmetic`.

    Args:
        module: initialised identically on every rank; moved and, with `train.parallel` fsdp, sharded in
            place.
        seed: the run's seed, for random numbers in the forward pass.

    Attributes:
        model: the trained model, of which the module is made.
        averaged: the moving average of all weights, or None.
        average: the moving average of the model, in eval mode, or None.
        forward: the function to call; the same as `module` if there is a single rank.
        optimizers: see make_optimizers.
        reported: what the task has reported about the step so far, by name; see `report`.
    """

    def __init__(
        self, module: TrainedModule, config: EngineConfig, optim: OptimConfig, ranks: Ranks, seed: int = 0
    ) -> None:
        self.config, self.optim = config, optim
        self.ranks, self.seed = ranks, seed
        self.reported: dict[str, list[Tensor]] = {}
        self.module = module.to(ranks.device).train()
        self.model = module.model
        freeze(self.model, optim.freeze, module.heads())
        self.averaged = Average(module) if config.ema else None
        self.average = self.averaged.model if self.averaged is not None else None
        self.forward: nn.Module = self.module
        if ranks.world_size > 1 and config.parallel == "fsdp":
            cut(module, self.averaged, ranks, choose_precision(config.precision, ranks.device))
        elif ranks.world_size > 1:
            self.forward = replicate(self.module)
        self.autocast = make_autocast(config.precision, ranks.device)
        if config.residual == "bf16" and not isinstance(self.autocast, torch.autocast):
            raise ValueError("train.residual=bf16 needs train.precision=bf16 or fp16")
        kept = (self.average, *self.averaged.heads()) if self.averaged is not None else ()
        for built in (self.model, *module.heads(), *kept):
            if isinstance(built, PackedViT | TextTower):
                built.backend = self.model.backend if config.attention == "auto" else config.attention
                self.compile(built)
            if isinstance(built, PackedViT):
                built.residual_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.residual]
        # Half precision loses small gradients: they are scaled up, and the scale is part of the checkpoint.
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "fp16")
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        self.optimizers = make_optimizers(self.model, optim, module.heads(), names)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        held = {parameter for group in groups for parameter in group["params"]}
        self._trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        for name, parameter in self._trained.items():
            assert parameter in held, f"{name} is in no part of heads()"
        self._shared = [part for part in (self.model, *module.heads()) if isinstance(part, FSDPModule)]

    def compile(self, model: PackedViT | TextTower) -> None:
        """Compile the blocks of `model`, in place, if `train.compile` says so for this device."""
        if wants_compiling(self.config.compile, self.ranks.device):
            model.compile_blocks()

    def backward_by_image(self, step: StepBatches, loss: Callable[[Any, LoadedBatch], Tensor]) -> Tensor:
        """Forward, loss and backward of one batch after another, for losses computed for each image alone.

        Args:
            loss: computes the loss of each image, float32 [n], from the module's outputs and a batch on the
                device.

        Returns:
            The losses of all images of this rank, [N], without a gradient.
        """
        losses = []
        for number, loaded in enumerate(step.batches):
            loaded = loaded.to(self.ranks.device)
            with self.sharing(last=number + 1 == len(step.batches)):
                with self.autocast:
                    outputs = self.forward(loaded.batch)
                each = loss(outputs, loaded)  # [n]
                self.backward(each.sum(), step.images)
            losses.append(each.detach())
        return torch.cat(losses)

    def report(self, name: str, values: Tensor) -> None:
        """Add the mean of `values` [n], such as a part of the loss, over all calls and ranks to the log.

        Every rank calls it equally often, with an empty tensor if it has no values.
        """
        self.reported.setdefault(name, []).append(values.detach().float())

    @contextmanager
    def sharing(self, last: bool) -> Iterator[None]:
        """A context in which the gradients of a backward pass are exchanged only if it is the `last` of a
        step."""
        for part in self._shared:
            part.set_requires_gradient_sync(last)
        if isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
        else:
            yield

    def backward(self, loss_sum: Tensor, images: float) -> None:
        """Add the gradient of `loss_sum` / `images`, summed over ranks.

        Args:
            images: number of images of the step on all ranks, if losses are those of images; 1 if `loss_sum`
                is already this rank's part of the step's loss.
        """
        skipped = islice(self.model.blocks, self.model.depth, None)
        if sums := [local(parameter).sum() for block in skipped for parameter in block.parameters()]:
            loss_sum = loss_sum + 0 * torch.stack(sums).sum()  # other ranks wait for every gradient
        # DDP and FSDP take the mean over ranks, and the sum is what is wanted.
        self.scaler.scale(loss_sum * (self.ranks.world_size / max(1, images))).backward()

    def depth_of(self, number: int) -> int | None:
        """How many blocks run in a step, `number` from 0, the same on all ranks; None: all.

        It is drawn for a step and not for an image, because a block that only some tokens of a batch skip
        would still have to run for all of them, which would save nothing.
        """
        depths = self.config.depths
        return Random(derive_seed(self.seed, "depth", number)).choice(depths) if depths else None

    def check_gradients(self) -> None:
        """Refuse a step that leaves a parameter without a gradient.

        Other ranks would wait for the gradient, and a checkpoint for the parameter's optimizer state.
        """
        for name, parameter in self._trained.items():
            assert parameter.grad is not None, (
                f"the loss does not depend on {name}: freeze it, or add 0 times what it gives"
            )

    def clip(self) -> Tensor:
        """Clip the gradient; returns its norm before, float32 [] on the device, the same on all ranks."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.optim.clip or math.inf)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, grad_norm: Tensor, number: int, lr_factor: float) -> None:
        """Update weights and average if `grad_norm` is finite; clear the gradient. `number` counts from 0."""
        set_lr(self.optimizers, lr_factor)
        skip = 1 - grad_norm.isfinite().float()
        for optimizer in self.optimizers:
            # GradScaler.step would have each optimizer look at its own gradients only.
            setattr(optimizer, "found_inf", skip)  # noqa: B010
            optimizer.step()
            delattr(optimizer, "found_inf")
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update(self.module, self.config.ema, number, skip)
        self.module.zero_grad(set_to_none=True)

    def whole(self) -> PackedViT:
        """The model to evaluate and to keep, not sharded: the average if there is one."""
        self.model.depth = self.model.config.depth
        chosen = self.average if self.average is not None else self.model
        if not isinstance(chosen, FSDPModule):
            return chosen
        with torch.device(self.ranks.device):
            whole = PackedViT(self.model.config)
        whole.backend, whole.residual_dtype = chosen.backend, chosen.residual_dtype
        whole.load_state_dict(get_model_state_dict(chosen, options=StateDictOptions(full_state_dict=True)))
        self.compile(whole)
        return whole

    def whole_heads(self) -> list[dict[str, Any]]:
        """The state dicts of the module's heads, or of their average if there is one, not sharded; every rank
        calls it."""
        heads = (self.averaged or self.module).heads()
        options = StateDictOptions(full_state_dict=True)
        return [
            get_model_state_dict(head, options=options) if isinstance(head, FSDPModule) else head.state_dict()
            for head in heads
        ]

    def state_dict(self) -> dict[str, Any]:
        """Weights, moving average and optimizer state: tensors only. Optimizer settings come from the
        configuration."""
        weights, optimizer = get_state_dict(self.module, self.optimizers)
        state: dict[str, Any] = {"model": weights, "optimizer": {"state": optimizer["state"]}}
        return state if self.averaged is None else state | self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the state by one that `state_dict` returned and that was read in place."""
        _, optimizer = get_state_dict(self.module, self.optimizers)
        set_state_dict(
            self.module,
            self.optimizers,
            model_state_dict=state["model"],
            optim_state_dict=optimizer | state["optimizer"],
        )
        if self.averaged is not None:
            self.averaged.load_state_dict(state)


class StepTask(Protocol):
    """What a step needs from a task."""

    def backward(self, engine: Engine, step: StepBatches) -> Tensor:
        """The gradient of the loss of the whole step, all batches of all ranks; returns the losses of this
        rank's images, [N]."""
        ...


def train_step(
    engine: Engine, task: StepTask, step: StepBatches, number: int, lr_factor: float = 1.0
) -> StepResult:
    """Take one optimizer step, without waiting for the device; every rank calls it.

    Args:
        step: this rank's batches, and the number of images of all ranks.
        number: number of the step in the run, from 0.
        lr_factor: factor of the peak learning rates.
    """
    engine.model.depth = engine.model.config.depth  # DDP's order of gradients may not depend on the step
    settle(engine.forward, engine.ranks, lambda: task.backward(engine, step))
    engine.model.depth = engine.depth_of(number) or engine.model.config.depth
    # What the forward pass draws depends on the step alone, so a resumed run draws the same.
    torch.manual_seed(derive_seed(engine.seed, "step", number + 1, engine.ranks.rank) % 2**63)
    engine.reported.clear()
    losses = task.backward(engine, step)
    engine.check_gradients()
    grad_norm = engine.clip()
    engine.update(grad_norm, number, lr_factor)
    return StepResult(losses, grad_norm, {name: torch.cat(v) for name, v in engine.reported.items()})
