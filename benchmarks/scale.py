"""Measure what many shards, ranks and waiting images take, and simulate how evenly ranks are loaded.

`.venv/bin/python benchmarks/scale.py` writes benchmarks/results/scale.json and the tables of docs/scale.md.
It makes 100,000 small tars in `--folder` (1.2 GB, removed at the end) and takes about half an hour.
`--only PART ...` repeats some parts and keeps the results of the others; `looks` needs strace.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaling import balance, commands, cores
from scaling.page import write_page
from scaling.shards import make_shards

from gpu.results import FOLDER, load, save
from packvit.train.recipes.find import RECIPES

RESULTS = FOLDER / "scale.json"
FEW, STREAMS = 64, 48  # shards to compare with, and streams of runs of one, two and three ranks
STATES = ("flexivit_b_i21k", "navit_clip_l14", "naflex", "navit_b16", "navit_b32")
BALANCED = ("flexivit_b_i21k", "navit_clip_l14", "navit_b16")
RANKS, STEPS = (8, 64, 256, 1024), 4
WINDOWS = (1, 4, 16)  # of packing.balance
HERE = Path(__file__).parent


class Scale:
    """The parts, on a folder of so many shards."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number
        self._cache = folder / "cache"

    def _shards(self, number: int) -> Path:
        """A folder of shards, made if it is not there."""
        folder = self._folder / str(number)
        if not folder.exists():
            make_shards(folder, number)
        self._cache.mkdir(exist_ok=True)
        return folder

    def index(self) -> dict[str, Any]:
        """`packvit shards index`."""
        return commands.index(self._shards(self._number), self._cache)

    def analyze(self) -> dict[str, Any]:
        """`packvit analyze`."""
        return commands.analyze(self._shards(self._number), self._cache)

    def start(self) -> dict[str, Any]:
        """Runs of one to three ranks to their first batch, on few and on many shards."""
        return {
            str(number): {
                str(ranks): commands.start(str(self._shards(number)), ranks, STREAMS, self._cache)
                for ranks in (1, 2, 3)
            }
            for number in (FEW, self._number)
        }

    def looks(self) -> dict[str, Any]:
        """How often a process looks at the folder of shards, by the way in which the shards are named."""
        found: dict[str, Any] = {}
        for number in (FEW, self._number):
            folder = self._shards(number)
            ways = {"folder": str(folder), "braces": f"{folder}/shard-{{000000..{number - 1:06d}}}.tar"}
            found[str(number)] = {
                way: commands.count_looks(shards, folder, 2, STREAMS, self._cache)
                for way, shards in ways.items()
            }
        return found

    def order(self) -> dict[str, Any]:
        """The order of an epoch of 10^5 and 10^6 shards."""
        return {
            str(number): run_part("order.py", "permutation", str(number), "64") for number in (10**5, 10**6)
        }

    def state(self) -> dict[str, Any]:
        """The state of a stream, by recipe."""
        return {name: run_part("order.py", "state", name) for name in STATES}

    def balance(self) -> dict[str, Any]:
        """The slowest rank over the mean, by recipe, rule and number of ranks."""
        return {name: simulate(name) for name in BALANCED}

    def cores(self) -> dict[str, Any]:
        """Cores that decode for a GPU."""
        rates = load(FOLDER / "data.json")["images_per_cpu_second"]
        return cores.loader_cores(rates, load(FOLDER / "gpu-dry.json")["now"]["results"]["roofline"])


def run_part(program: str, *arguments: str) -> dict[str, Any]:
    """What a program of benchmarks/scaling prints, in a process of its own."""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(HERE / "scaling" / program), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"PYTHONPATH": paths})
    return json.loads(done.stdout)


def simulate(name: str) -> dict[str, Any]:
    """One recipe: packvit's dealer by its window, and other rules on batches that are dealt without one."""
    config = RECIPES[name]()
    lengths = balance.draw_lengths(config.views, config.packing.seq_len)
    width, rows = config.model.width, {}
    for window in WINDOWS:
        packing = replace(config.packing, balance=window)
        trace = balance.make_trace(lengths, packing, config.model, RANKS[-1], STEPS, 2 + window)
        rows[f"packvit, balance {window}"] = over_ranks(trace, balance.as_packed)
        if window == 1:
            rows["VeOmni"] = over_ranks(trace, lambda some: balance.exchanged(some, lambda n: n * n))
            rows["NeMo Automodel's cost"] = over_ranks(
                trace, lambda some: balance.exchanged(some, lambda n: n * (n + 3 * width))
            )
            rows["NeMo Automodel's knapsack"] = over_ranks(trace, balance.sorted_knapsack)
    return {"sequences": config.packing.sequences, "seq_len": config.packing.seq_len, "rows": rows}


def over_ranks(trace: balance.Trace, costs: Callable[[balance.Trace], list[list[int]]]) -> dict[str, Any]:
    """max / mean by the number of ranks."""
    return {str(ranks): balance.max_over_mean(costs(trace.first(ranks))) for ranks in RANKS}


def main() -> None:
    """Run the parts, each written as soon as it is done."""
    names = [name for name in vars(Scale) if not name.startswith("_")]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/packvit-scale"))
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--keep", action="store_true", help="keep the folder, for the next call")
    arguments = parser.parse_args()
    scale = Scale(arguments.folder, arguments.shards)
    results = load(RESULTS)
    try:
        for name in arguments.only:
            results[name] = getattr(scale, name)()
            results |= {
                "command": "python benchmarks/scale.py",
                "hardware": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
                "python": platform.python_version(),
                "shards": arguments.shards,
            }
            save(RESULTS, results)
            print(f"{name}: {json.dumps(results[name])}", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.folder, ignore_errors=True)
    write_page(results)


if __name__ == "__main__":
    main()
