"""Fake CUDA: tensors with a device, shapes and dtypes, but no memory, so that no GPU is needed.

`start` must run before anything else uses torch.cuda, in a process that has the stub preloaded (stub.py).
"""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.cuda.amp.common
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from packvit.packing import PackedBatch, map_leaves

DEVICE = torch.device("cuda")
MULTIPROCESSORS = 132
# What compilers ask of a device: an H200.
PROPERTIES = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=MULTIPROCESSORS,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=141 * 10**9,
    gcnArchName="",
    L2_cache_size=50 * 2**20,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
    uuid="0",
    clock_rate=1_980_000,
    memory_clock_rate=3_201_000,
    memory_bus_width=6144,
)


# Updates in place, of which torch has no form without memory: they change no shape and give nothing.
IN_PLACE = ("_fused_sgd_", "_fused_sgd_.tensor_lr")
LIBRARY = torch.library.Library("aten", "IMPL", "Meta")


def answer(value: Any) -> Callable[..., Any]:
    """A function that gives `value` whatever it is asked."""
    return lambda *arguments, **named: value


def start(library: str) -> None:
    """Make torch believe in one H200.

    Args:
        library: the preloaded stub.
    """
    cuda: Any = torch.cuda
    cuda.get_device_capability = answer((9, 0))
    cuda.get_device_properties = answer(PROPERTIES)
    cuda.get_device_name = answer(PROPERTIES.name)
    cuda.is_bf16_supported = answer(True)
    cuda.current_device = answer(0)
    cuda.device_count = answer(1)
    cuda.is_available = answer(False)  # else compilers would save the state of its random numbers
    cuda._lazy_init = answer(None)
    torch.cuda.amp.common.amp_definitely_not_available = answer(False)
    # Copies of a model, such as its moving average, stay in the mode of the model.
    setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode)  # noqa: B010
    for name in IN_PLACE:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            LIBRARY.impl(name, answer(None))
    # While torch sees no device it installs guards that do nothing; afterwards autograd may see one.
    with FakeTensorMode():
        pass
    torch._C._ensureCUDADeviceGuardSet()
    # Autograd's threads ask for the state of further devices, too.
    ctypes.CDLL(library).packvit_set_devices(16)


def to_fake(batch: PackedBatch, mode: FakeTensorMode, device: torch.device = DEVICE) -> PackedBatch:
    """A batch in host memory as fake tensors, as if it had been copied to `device`."""
    return map_leaves(batch, Tensor, lambda x: empty_like(x, mode, device))


def empty_like(x: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    """A fake tensor of the shape and dtype of `x`."""
    with mode:
        return torch.empty(x.shape, dtype=x.dtype, device=device)


def place(module: nn.Module, mode: FakeTensorMode, device: torch.device = DEVICE) -> None:
    """Replace parameters and buffers by fake ones on `device`, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(empty_like(parameter, mode, device))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = empty_like(buffer, mode, device)
    # It is there already, and fake parameters cannot be moved.
    setattr(module, "to", lambda *arguments, **named: module)  # noqa: B010
