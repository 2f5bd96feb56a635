"""Does a consistency loss between budgets make one space of features of several, at equal FLOPs?

`python benchmarks/consistency.py` inspects the finished runs of benchmarks/cures.py in --out (`packvit
inspect`), each at three resolutions and three patch sizes: the mean accuracy; k-NN accuracy if an image and
its neighbours have the same setting, less that if they have two (`mode_switch`); and the mean CKA of the
features at two settings. It writes benchmarks/results/consistency.json and the table of docs/replication.md.
Finished inspections are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from cures import FLEXIBLE, PAGE, ROOT, folder_of, is_finished
from replication import TEST_IMAGES, machine, spread

from gpu.results import replace_section, save, table

RESULTS = ROOT / "benchmarks/results/consistency.json"
VARIANTS = (
    FLEXIBLE,
    "consistency 0.1",
    "consistency 1",
    "as many FLOPs for each size",
    "12 and 16 first",
)
PATCHES, RESOLUTIONS = (4, 8, 16), (32, 48, 64)
MEASURES = {
    "accuracy": "accuracy",
    "within": "k-NN within",
    "across": "k-NN across",
    "mode_switch": "within - across",
    "cka": "CKA across",
}


def inspect(folder: Path, data: Path) -> dict[str, Any]:
    """The inspection of a run's model, made unless it is there."""
    made = folder / "inspect/inspect.json"
    names = [f"r{r}-p{p}" for r in RESOLUTIONS for p in PATCHES]
    if not made.exists() or [s["setting"] for s in json.loads(made.read_text())["settings"]] != names:
        flags = ["--shards", str(data / "val"), "--images", str(TEST_IMAGES), "--pictures", "0"]
        flags += ["--resolutions", *map(str, RESOLUTIONS), "--patch-sizes", *map(str, PATCHES)]
        subprocess.run([sys.executable, "-m", "packvit.cli", "inspect", str(folder), *flags], check=True)
    return json.loads(made.read_text())


def measure(out: Path, variant: str, seed: int) -> dict[str, Any]:
    """What one run comes to, with all shares in percent."""
    folder = folder_of(out, variant, seed)
    inspected = inspect(folder, out / "data")
    neighbours = 100 * np.array(inspected["knn"]["accuracy"])  # [settings, settings of the neighbours]
    cka = 100 * np.array(inspected["cka"]["pooled"]["features"])  # [settings, settings]
    within, two = np.eye(len(cka), dtype=bool), ~np.eye(len(cka), dtype=bool)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "variant": variant,
        "seed": seed,
        **{name: last[name] for name in ("gflops_seen", "images_seen", "step")},
        "accuracy": 100 * mean(row["accuracy"] for row in inspected["settings"]),
        "within": float(neighbours[within].mean()),
        "across": float(neighbours[two].mean()),
        "mode_switch": 100 * inspected["knn"]["mode_switch"],
        "cka": float(cka[two].mean()),
    }


def rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each variant: mean and standard deviation over seeds."""
    found = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        own = [run for run in runs if run["variant"] == variant]
        cells = [spread([run[name] for run in own]) for name in MEASURES]
        found.append([variant, str(len(own)), *cells])
    return found


def main() -> None:
    """Inspect what is missing; write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/cures"), help="folder of cures.py's runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    out = arguments.out
    finished = [(v, seed) for v in VARIANTS for seed in arguments.seeds if is_finished(out, v, seed)]
    if not finished:
        parser.error(f"no run in {out} is finished: start benchmarks/cures.py first")
    runs = [measure(out, variant, seed) for variant, seed in finished]
    about = {"command": "python benchmarks/consistency.py", **machine()}
    settings = {"resolutions": RESOLUTIONS, "patch_sizes": PATCHES, "images": TEST_IMAGES}
    save(RESULTS, {**about, **settings, "results": runs})
    replace_section("consistency", table(["", "seeds", *MEASURES.values()], rows(runs)), PAGE)


if __name__ == "__main__":
    main()
