"""The precision that a device computes in, and its memory."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

# What CUDA's matrix products need to come out the same each time; read when the first of them is started.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FILL = "fill_uninitialized_memory"


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve `auto`: bf16 on CUDA and fp32 elsewhere; any other precision is returned unchanged."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def wants_compiling(wish: str, device: torch.device) -> bool:
    """Whether `train.compile` asks to compile on a device."""
    return wish == "on" or (wish == "auto" and device.type == "cuda")


def make_autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in `precision`; `auto` is bf16 on CUDA and fp32 elsewhere."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    chosen = choose_precision(precision, device)
    return torch.autocast(device.type, dtypes[chosen]) if chosen in dtypes else nullcontext()


@contextmanager
def arithmetic(precision: str, deterministic: bool) -> Iterator[None]:
    """A context for a whole run, because these are settings of the process; they are restored at its end.

    Args:
        precision: `tf32` lets CUDA round the factors of fp32 matrix products to 10 bits of mantissa; others
            do not change the setting, which is exact in a fresh process.
        deterministic: give the same numbers each time on CUDA; the context must begin before the first matrix
            product there.
    """
    matmul, set_fill = torch.backends.cuda.matmul, partial(setattr, torch.utils.deterministic, FILL)
    tf32, fill = matmul.fp32_precision, getattr(torch.utils.deterministic, FILL)
    before, workspace = torch.are_deterministic_algorithms_enabled(), os.environ.get(WORKSPACE)
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if precision == "tf32":
        # The older name sets what both it and `fp32_precision` answer; the newer one makes the older raise.
        matmul.allow_tf32 = True
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
        set_fill(False)  # filling finds mistakes, and costs time
    try:
        yield
    finally:
        if precision == "tf32":
            matmul.allow_tf32 = tf32 == "tf32"
            matmul.fp32_precision = tf32
        if deterministic:
            set_fill(fill)
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            if workspace is None:
                del os.environ[WORKSPACE]


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def total_memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of this machine for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
