"""What the machine is, which packages it has, and which attention backends work on it."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gpu.options import Options
from gpu.standins import missing
from packvit.cli import info
from packvit.models import BACKENDS

PACKAGES = ("torch", "triton", "xformers", "timm", "webdataset", "simplejpeg", "numpy")


def version_of(name: str) -> str:
    """Of a package; a dash where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Sections of `packvit info`, versions, and the backends in each precision."""
    for title, lines in (("torch", info.torch_build()), ("machine", info.machine()), ("gpus", info.gpus())):
        yield title, dict(lines)
    yield "packages", {name: version_of(name) for name in PACKAGES}
    yield "missing", missing()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        working = {name: info.try_backend(name, options.device, dtype) for name in BACKENDS}
        yield f"backends in {str(dtype).removeprefix('torch.')}", working
