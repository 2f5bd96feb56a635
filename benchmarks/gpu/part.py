"""One part in a process of its own: `python -P -m gpu.part NAME --device cuda --out FILE`."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch

from gpu import standins
from gpu.options import Options
from gpu.results import save

PARTS = (
    "versions",
    "peaks",
    "tests",
    "syncs",
    "recompiles",
    "mfu",
    "attention",
    "patch_sizes",
    "peers",
    "training",
)


def main() -> None:
    """Run it; the file is written again after every number, so that a late failure loses none."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    standins.install()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    results: dict[str, Any] = {}
    for name, value in importlib.import_module(f"gpu.parts.{arguments.name}").run(
        Options(device, arguments.tiny)
    ):
        results[name] = value
        save(arguments.out, results)
        print(f"{arguments.name}: {name}: {value}", flush=True)


if __name__ == "__main__":
    main()
