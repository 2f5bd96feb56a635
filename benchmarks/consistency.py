"""Does a consistency loss between budgets make one space of features of several, at equal FLOPs?

`python benchmarks/consistency.py` draws the demo set, trains the recipe `digits` with every weight of the
loss and every seed until a run has spent --gflops, both images of every pair counted, and inspects each at
three resolutions and patch sizes: accuracy; k-NN accuracy within a setting less that across two
(`mode_switch`); and the mean CKA of the last block's pooled features between two settings. It writes
benchmarks/results/consistency.json, and prints the table. Finished runs in --out are not repeated.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from packvit.data import write_digits

ROOT = Path(__file__).parents[1]
WEIGHTS = (0.0, 0.1, 1.0)  # of the consistency loss; 0 shows every sample once
PATCHES, RESOLUTIONS = (4, 8, 16), (32, 48, 64)
TRAIN_IMAGES, TEST_IMAGES = 20_000, 800
MEASURES = {"accuracy": "accuracy", "mode_switch": "k-NN within - across", "cka": "CKA across"}


def measure(out: Path, data: Path, weight: float, seed: int, gflops: int) -> dict[str, Any]:
    """What one run came to, trained and inspected if that was not done yet."""
    folder = out / f"weight-{weight:g}-seed-{seed}"
    if not (folder / "model.safetensors").exists():
        flags = ["--run-dir", str(folder), "--seed", str(seed), "--consistency.weight", str(weight)]
        flags += ["--train.gflops", str(gflops), "--optim.warmup", str(gflops // 16)]
        flags += ["--train.checkpoint-every", "100000", "--data.shards", str(data / "train")]
        subprocess.run([sys.executable, "-m", "packvit.train", "digits", *flags], check=True)
    if not (folder / "inspect/inspect.json").exists():
        flags = ["--shards", str(data / "val"), "--images", str(TEST_IMAGES), "--pictures", "0"]
        flags += ["--resolutions", *map(str, RESOLUTIONS), "--patch-sizes", *map(str, PATCHES)]
        subprocess.run([sys.executable, "-m", "packvit.cli", "inspect", str(folder), *flags], check=True)
    inspected = json.loads((folder / "inspect/inspect.json").read_text())
    cka = torch.tensor(list(inspected["cka"]["pooled"].values())[-1])  # of the last place in the model
    settings = len(cka)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "weight": weight,
        "seed": seed,
        **{name: last[name] for name in ("gflops_seen", "images_seen", "step")},
        "accuracy": mean(row["accuracy"] for row in inspected["settings"]),
        "mode_switch": inspected["knn"]["mode_switch"],
        "cka": float((cka.sum() - cka.trace()) / (settings * (settings - 1))),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds for each weight."""
    lines = [f"| weight | images | {' | '.join(MEASURES.values())} |", "| ---: | ---: |" + " ---: |" * 3]
    for weight in dict.fromkeys(run["weight"] for run in runs):
        own = [run for run in runs if run["weight"] == weight]
        cells = [f"{weight:g}", f"{mean(run['images_seen'] for run in own):,.0f}"]
        for name in MEASURES:
            values = [100 * run[name] for run in own]
            cells.append(f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gflops", type=int, default=40_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs/consistency")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/consistency.json")
    arguments = parser.parse_args()
    data = arguments.out / "data"
    if not (data / "val/classes.json").exists():  # written last
        write_digits(data, TRAIN_IMAGES, TEST_IMAGES, seed=0)
    runs = [
        measure(arguments.out, data, weight, seed, arguments.gflops)
        for seed in arguments.seeds
        for weight in arguments.weights
    ]
    about = {"python": platform.python_version(), "torch": torch.__version__, "gflops": arguments.gflops}
    arguments.results.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
