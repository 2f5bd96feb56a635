"""The model as one rank trains it: on its device, cast, compiled, shared with the other ranks, and stepped.

`ddp` keeps a whole copy of everything on each rank. `fsdp` (fully_shard, FSDP2) cuts weights, gradients,
moving average and optimizer state into equal parts; a block is gathered just before it runs.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from packvit.models import PackedViT
from packvit.train.config import Config
from packvit.train.distributed import Ranks
from packvit.train.optim import freeze, make_optimizers, set_lr, update_ema
from packvit.train.student import Student


class Engine:
    """Forward, backward and step of a model over all ranks.

    Args:
        student: initialised alike on every rank; moved and, with `train.parallel` fsdp, sharded in place.

    Attributes:
        model: the trained model, of which the student is made.
        average: the moving average of its weights, in eval mode, or None.
        forward: what to call; the same as `student` where nothing is shared.
        optimizers: see make_optimizers.
    """

    def __init__(self, student: Student, config: Config, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        self.student = student.to(ranks.device).train()
        self.model = student.model
        freeze(self.model, config.optim.freeze)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval() if config.train.ema else None
        self.forward: nn.Module = self.student
        if ranks.world_size > 1 and config.train.parallel == "fsdp":
            mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
            for whole in (self.model, self.average):
                if whole is not None:
                    shard(whole, mesh)
            for part in student.maps():
                fully_shard(part, mesh=mesh)
        elif ranks.world_size > 1:
            self.forward = DistributedDataParallel(self.student)
        for built in (self.model, self.average):
            if built is not None:
                self.compile(built)
        self.autocast = make_autocast(config.train.precision, ranks.device)
        # Half precision loses small gradients: they are scaled up, and the scale is part of the checkpoint.
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.train.precision == "fp16")
        self.optimizers = make_optimizers(self.model, config.optim, student.maps())

    def compile(self, model: PackedViT) -> None:
        """Compile the blocks of `model`, in place, if `train.compile` says so for this device."""
        if wants_compiling(self.config.train.compile, self.ranks.device):
            model.compile_blocks()

    @contextmanager
    def sharing(self, last: bool) -> Iterator[None]:
        """Gradients of a backward pass in here are shared among ranks only if it is the `last` of a step."""
        for part in (self.model, *self.student.maps()):
            if isinstance(part, FSDPModule):
                part.set_requires_gradient_sync(last)
        if isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
        else:
            yield

    def backward(self, loss_sum: Tensor, images: float) -> None:
        """Add the gradient of `loss_sum` / `images`, where `images` counts the step's over all ranks."""
        # DDP and FSDP take the mean over ranks, and the sum is what is wanted.
        self.scaler.scale(loss_sum * (self.ranks.world_size / max(1, images))).backward()

    def clip(self) -> float:
        """Clip the gradient; returns its norm before, the same on all ranks. Waits for the device."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.config.optim.clip or math.inf)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def step(self, finite: bool, number: int, lr_factor: float) -> None:
        """Update weights and average if the gradient is `finite`, and forget it; `number` counts from 0."""
        set_lr(self.optimizers, lr_factor)
        for optimizer in self.optimizers:
            # The scaler leaves out what is not finite by itself, and has to see it to lower its scale.
            if finite or self.scaler.is_enabled():
                self.scaler.step(optimizer)
        self.scaler.update()
        if finite and self.average is not None:
            update_ema(self.average.parameters(), self.model.parameters(), self.config.train.ema, number)
        self.student.zero_grad(set_to_none=True)

    def whole(self) -> PackedViT:
        """The model to evaluate and to keep, not sharded: the average where there is one."""
        chosen = self.average if self.average is not None else self.model
        if not isinstance(chosen, FSDPModule):
            return chosen
        with torch.device(self.ranks.device):
            whole = PackedViT(self.config.model)
        whole.load_state_dict(get_model_state_dict(chosen, options=StateDictOptions(full_state_dict=True)))
        self.compile(whole)
        return whole


def shard(model: PackedViT, mesh: DeviceMesh) -> None:
    """Cut `model` over all ranks, block by block, in place; what is no block is one part."""
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "outputs")


def wants_compiling(wish: str, device: torch.device) -> bool:
    """What `train.compile` means on a device."""
    return wish == "on" or (wish == "auto" and device.type == "cuda")


def make_autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in `precision`; `auto` is bf16 on CUDA, fp32 elsewhere."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()
