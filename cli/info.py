"""`packvit info`: what a bug report should say about the machine and the installation. `packvit info MODEL`:
a description of a model."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch.cuda import nccl

from packvit.cli.options import read_options
from packvit.common.device import device_name
from packvit.models import BACKENDS, Segments, attention, choose_backend, describe_file

VARIABLES = re.compile(
    r"(PACKVIT|TORCH|PYTORCH|CUDA|NCCL|GLOO|OMP|MKL|KMP|XFORMERS|TRITON)_|CXX$|LD_PRELOAD$"
)
SECRET = re.compile("KEY|TOKEN|SECRET|PASS")
GB = 1e9


@dataclass(frozen=True)
class Info:
    """Show versions, devices, attention backends and settings for bug reports, or describe a model.

    Args:
        model: a run's folder, a checkpoint, or any file that load_model reads; then only it is described.
    """

    model: Annotated[str, tyro.conf.Positional] = ""


def main(arguments: Sequence[str]) -> None:
    """Print all of it."""
    options = read_options(Info, "packvit info", arguments)
    if options.model:
        show("Model", list(describe_file(options.model)))
        return
    for title, lines in (
        ("Packages", packages()),
        ("torch", torch_build()),
        ("Machine", machine()),
        ("GPUs", gpus()),
        ("Attention backends", backends()),
        ("Environment", environment()),
    ):
        show(title, lines)


def show(title: str, lines: Iterable[tuple[str, str]]) -> None:
    """Print one section."""
    print(title)
    for name, value in lines:
        print(f"  {name:<20} {value}")


def packages() -> Iterator[tuple[str, str]]:
    """packvit and every package that it or one of its extras requires."""
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    try:
        yield "packvit", f"{version('packvit')}, {Path(__file__).resolve().parent.parent}"
        wanted = requires("packvit") or []
    except PackageNotFoundError:
        yield "packvit", f"not installed, {Path(__file__).resolve().parent.parent}"
        wanted = ["torch", "numpy"]
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted} - {"packvit"}
    missing = []
    for name in sorted(names, key=str.lower):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            missing.append(name)
    yield "not installed", ", ".join(missing) or "-"


def torch_build() -> Iterator[tuple[str, str]]:
    """What torch was built with, and what it uses on the CPU."""
    yield "version", f"{torch.__version__}, commit {(torch.version.git_version or 'unknown')[:10]}"
    yield (
        "CUDA",
        torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else "none: a CPU build"),
    )
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    yield "cuDNN", str(cudnn or "none")
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    yield "NCCL", ".".join(map(str, nccl.version())) if has_nccl else "none"
    yield "CPU instructions", torch.backends.cpu.get_cpu_capability()
    yield (
        "CPU threads",
        f"{torch.get_num_threads()} in an operation, {torch.get_num_interop_threads()} between them",
    )
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    yield "C++ compiler", compiler or "none: train.compile=on cannot work on a CPU"


def machine() -> Iterator[tuple[str, str]]:
    """System, processor and memory."""
    yield "system", platform.platform()
    yield "CPU", device_name(torch.device("cpu"))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cores", f"{os.cpu_count()}, {usable} of them for this process"
    yield "memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GB:.1f} GB"
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (value := limit.read_text().strip()).isdigit():
        yield "memory limit", f"{int(value) / GB:.1f} GB"
    if Path("/dev/shm").exists():  # where the processes of the data loader leave batches
        yield "shared memory", f"{shutil.disk_usage('/dev/shm').total / GB:.1f} GB"


def gpus() -> Iterator[tuple[str, str]]:
    """Every GPU that torch sees."""
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        yield "driver", driver.read_text().splitlines()[0]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        yield (
            f"cuda:{index}",
            f"{gpu.name}, {free / GB:.1f} of {total / GB:.1f} GB free, compute capability "
            f"{gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors",
        )
    if not torch.cuda.is_available():
        yield "none", "torch finds no GPU"


def backends() -> Iterator[tuple[str, str]]:
    """Whether each backend computes a small batch here, and why not."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    yield (
        "auto",
        f"{choose_backend('auto', device, dtype)}, on {device.type} in {str(dtype).removeprefix('torch.')}",
    )
    for name in BACKENDS:
        yield name, try_backend(name, device, dtype)


def try_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """`works`, or why it does not."""
    try:
        choose_backend(name, device, dtype)
        offsets = torch.tensor([0, 5, 32], dtype=torch.int32, device=device)
        q = torch.ones(32, 2, 16, dtype=dtype, device=device)
        attention(q, q, q, Segments.build(offsets, 27, name, total=32)).sum().item()
    except Exception as error:  # whatever a kernel or a compiler raises belongs into the report
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return reason.removeprefix(f"attention backend {name!r} ")
    return "works"


def environment() -> Iterator[tuple[str, str]]:
    """Variables that change what is computed or how; no passwords."""
    found = {name: os.environ[name] for name in sorted(os.environ) if VARIABLES.match(name)}
    for name, value in found.items():
        yield name, "(hidden)" if SECRET.search(name) else value
    if not found:
        yield "none", "of those that packvit and torch look at"
