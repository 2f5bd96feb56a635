"""What a device computes in, and how much fits on it."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch


def make_autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in `precision`; `auto` is bf16 on CUDA and fp32 elsewhere."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


def total_memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of this machine for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
