"""What a GPU would do, counted without one: `python -P -m dry`, with benchmarks/ on the path.

`make gpu-dry` calls it. Each part is a process of its own that has a stub of the driver preloaded. Writes
benchmarks/results/gpu-dry.json and docs/gpu.md, and ends with status 1 if a part failed or a number grew.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from dry.page import lines_of
from dry.roofline import predict
from dry.stub import build
from gpu.compare import errors, grown
from gpu.results import FOLDER, ROOT, commit, load, replace_section, save

PARTS = ("schedule", "collectives", "recompiles", "variants")
AT_ONCE = 2  # processes; each has one thread
LIMIT = 600  # seconds of a part
LIBRARY = "PACKVIT_DRY_STUB"


def run_part(name: str, out: Path) -> None:
    """In a process of its own: run one part and write what it gives."""
    from dry import fake

    warnings.simplefilter("ignore")
    fake.start(os.environ[LIBRARY])
    out.write_text(json.dumps(importlib.import_module(f"dry.{name}").run()))
    sys.stdout.flush()
    os._exit(0)  # the stub has no driver to shut down in order


def start_part(name: str, library: Path, folder: Path) -> dict[str, Any]:
    """The results of a part; `error` where its process failed."""
    out = folder / f"{name}.json"
    own = {
        "LD_PRELOAD": str(library),
        LIBRARY: str(library),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    began = time.monotonic()
    command = [sys.executable, "-P", "-m", "dry", "--part", name, "--out", str(out)]
    try:
        done = subprocess.run(
            command, env=os.environ | own, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"part": {"error": f"not done after {LIMIT} s"}}
    if out.exists():
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        return json.loads(out.read_text())
    print(done.stdout[-2000:], done.stderr[-4000:])
    return {"part": {"error": f"status {done.returncode}: {(done.stderr.splitlines() or [''])[-1]}"}}


def totals(results: dict[str, Any]) -> dict[str, int]:
    """The largest number of waits and copies of all variants, and all recompiles."""
    variants, models = results["variants"].values(), results["recompiles"].values()
    return {
        "waits": max(v.get("waits", 0) for v in variants),
        "copies_to_host": max(v.get("copies_to_host", 0) for v in variants),
        "recompiles": sum(m.get("recompiles", 0) for m in models),
    }


def roofline(results: dict[str, Any]) -> dict[str, Any]:
    """Predictions for ViT-B and ViT-L with every kind of block whose traffic is known."""
    from gpu.batches import make_batch, segments_of
    from packvit.models import preset

    blocks = results["schedule"].get("block", {})
    ends = results["schedule"].get("ends", {}).get("gb")
    batch = make_batch(64, 1024, noise=False)
    waits = results["variants"].get("default", {}).get("waits", 0)
    found = {}
    for kind, block in blocks.items():
        if "gb" in block and ends is not None:
            traffic = {"block": block["gb_without_products"], "ends": ends}
            for name in ("B", "L"):
                segments, images = segments_of(batch), batch.num_images
                found[f"{name}, {kind}"] = predict(preset(name), segments, images, traffic, waits)
    return found


def main() -> int:
    """Run all parts, write what they give; the exit status."""
    parser = argparse.ArgumentParser(prog="python -P -m dry", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", default="now", help="column under which the numbers are kept")
    parser.add_argument("--accept", action="store_true", help="keep numbers that have grown")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options.part, options.out)
    if torch.version.cuda is None:
        print(f"torch {torch.__version__} is a CPU build: make gpu-dry installs one for CUDA")
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder), Path(torch.__file__).parent / "lib")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            parts = pool.map(lambda name: start_part(name, library, Path(folder)), PARTS)
            results: dict[str, Any] = dict(zip(PARTS, parts, strict=True))
    results["totals"] = totals(results)
    results["roofline"] = roofline(results)
    path = FOLDER / "gpu-dry.json"
    runs = load(path)
    failed = errors(results)
    if not options.accept:
        stored = runs.get(options.name) or runs.get("before", {})
        failed += grown(results, stored.get("results", {}))
    for sentence in failed:
        print(f"failed: {sentence}")
    if not failed or options.name not in runs:
        seconds = round(time.monotonic() - began, 1)
        run = {"commit": commit(), "torch": torch.__version__, "seconds": seconds, "results": results}
        runs[options.name] = run
        save(path, runs)
        replace_section("dry", lines_of(runs))
        print(f"wrote {path.relative_to(ROOT)} and docs/gpu.md in {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
