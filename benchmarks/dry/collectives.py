"""Messages of a ViT-B's training step on one of 8 ranks, by operation, in number and bytes.

A process group of torch's own testing answers at once and sends nothing. Tensors are on the CPU,
where the same collectives run as on GPUs. A step is the whole of `train_step`; the batch is small, because
messages depend on the weights alone. Norms are RMS norms: weights may then be gathered in bf16,
which LayerNorm does not take on a CPU.
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from dry.count import Count
from dry.fake import answer, place, to_fake
from gpu.batches import make_batch
from gpu.steps import Trainer, plan
from packvit.common.ranks import Ranks
from packvit.models import preset
from packvit.train.step.step import Engine
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.start import make_module

RANKS = 8
CPU = torch.device("cpu")


class Idle(TorchDispatchMode):
    """Leaves out the arithmetic of matrix products, which takes minutes on a CPU; they give zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Zeros of the right shape instead of a product."""
        name = func._schema.name
        if name in ("aten::mm", "aten::bmm"):
            return args[0].new_zeros(*args[0].shape[:-1], args[1].shape[-1])
        if name in ("aten::addmm", "aten::baddbmm"):
            return args[1].new_zeros(*args[1].shape[:-1], args[2].shape[-1])
        return func(*args, **(kwargs or {}))


def note_bucket(buckets: list[int], bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Instead of the all-reduce of a bucket of DDP's, which the group could not answer."""
    buckets.append(bucket.buffer().nbytes)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def messages(kind: Any, parallel: str, fake: FakeTensorMode) -> dict[str, Any]:
    """Number and bytes of a step's messages."""
    config = plan(preset("B", patch_buffer=16, norm="rms"), kind=kind, parallel=parallel)
    task = Classification(config)
    batch = make_batch(1, 256, noise=False)
    # DDP's buckets have to be memory; what FSDP gathers would be noise, and so it is fake.
    mode = fake if parallel == "fsdp" else Idle()
    module = make_module(config, task)
    if isinstance(mode, FakeTensorMode):
        place(module, mode, CPU)
        batch = to_fake(batch, mode, CPU)
    module.model.backend = "dense"  # the one that reads nothing on the host
    with mode, Count():
        engine = Engine(module, config.train, config.optim, Ranks(0, RANKS, CPU), config.seed)
    trainer, buckets = Trainer(engine, task, config), []
    if isinstance(engine.forward, distributed.DistributedDataParallel):
        engine.forward.register_comm_hook(buckets, note_bucket)
    with mode, Count():
        trainer.step(batch)
    buckets.clear()
    with mode, Count() as count:
        trainer.step(batch)
    for size in buckets:
        count.messages["allreduce_"] += 1
        count.sent["allreduce_"] += size
    return {
        "number": sum(count.messages.values()),
        "mb": round(sum(count.sent.values()) / 1e6, 1),
        "by_operation": {
            name: {"number": number, "mb": round(count.sent[name] / 1e6, 1)}
            for name, number in sorted(count.messages.items())
        },
    }


def run() -> dict[str, Any]:
    """{optimizer and way of sharing: messages of a step}."""
    os.environ["RANK"], os.environ["WORLD_SIZE"] = "0", str(RANKS)
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    # Made before tensors are fake: a mesh holds real ones.
    mesh = init_device_mesh("cpu", (RANKS,))
    for module in [module for name, module in sys.modules.items() if name.startswith("packvit.train.step")]:
        if hasattr(module, "init_device_mesh"):
            setattr(module, "init_device_mesh", answer(mesh))  # noqa: B010
    # Nobody answers DDP's question whether all ranks have the same parameters.
    setattr(distributed, "_verify_param_shape_across_processes", answer(True))  # noqa: B010
    results, fake = {}, FakeTensorMode()
    for kind, parallel in (("adamw", "ddp"), ("muon", "ddp"), ("adamw", "fsdp"), ("muon", "fsdp")):
        try:
            results[f"{kind}, {parallel}"] = messages(kind, parallel, fake)
        except Exception as error:
            results[f"{kind}, {parallel}"] = {
                "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"
            }
    dist.destroy_process_group()
    return results
