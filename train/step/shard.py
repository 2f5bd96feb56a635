"""A module on several ranks: copied to each (DDP) or sharded (FSDP2)."""

from collections.abc import Callable
from inspect import signature
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from packvit.common.ranks import Ranks
from packvit.models import PackedViT
from packvit.train.step.average import Average
from packvit.train.step.interface import TrainedModule


def replicate(module: nn.Module) -> DistributedDataParallel:
    """A copy on every rank. Buffers are constants, and gradients are stored once, where they are summed."""
    options: dict[str, Any] = {"gradient_as_bucket_view": True}
    # torch 2.13 has renamed it, and warns of the older name.
    known = signature(DistributedDataParallel).parameters
    options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    return DistributedDataParallel(module, **options)


def settle(forward: nn.Module, ranks: Ranks, backward: Callable[[], object]) -> None:
    """Before the first step of a process, run its backward pass once and discard it, if DDP has three or more
    ranks.

    DDP reorders gradients after the first pass, and a sum of three or more terms depends on their order in
    its last bit, so a resumed run would differ from one that was never stopped.

    Args:
        forward: the engine's forward.
        backward: the pass of the step; its gradients are discarded.
    """
    if ranks.world_size > 2 and isinstance(forward, DistributedDataParallel) and forward not in _settled:
        backward()
        forward.zero_grad(set_to_none=True)
        _settled.add(forward)


_settled: WeakSet[nn.Module] = WeakSet()


def cut(module: TrainedModule, average: Average | None, ranks: Ranks, precision: str) -> None:
    """Shard the model, the module's heads and their average over all ranks, in place."""
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for whole in (module, average):
        if whole is not None:
            shard(whole.model, mesh, precision)
            for head in whole.heads():
                fully_shard(head, mesh=mesh)


def shard(model: PackedViT, mesh: DeviceMesh, precision: str) -> None:
    """Shard `model` over all ranks, block by block, in place; everything outside the blocks is one part.

    All stored values are fp32. With precision bf16, blocks are gathered as bf16, to which their matrix
    products round weights anyway, and norms and scales are rounded as well; ranks send each other half as
    much. Their gradients are summed in fp32. Embeddings, pooling and head are gathered as fp32, and the
    stream between blocks is not rounded. With fp16, everything is gathered as fp32, because the range of fp16
    is too small for the gradients of norms, which autocast computes in fp32.
    """
    blocks = MixedPrecisionPolicy()
    # On a CPU, torch's LayerNorm does not take bf16 weights for fp32 tokens, and autocast does not help.
    fits = mesh.device_type != "cpu" or not any(isinstance(m, nn.LayerNorm) for m in model.blocks.modules())
    if precision == "bf16" and fits:
        blocks = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=blocks)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "outputs")
