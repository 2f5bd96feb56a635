"""The papers' claims, tried on the demo set at equal FLOPs: docs/replication.md.

`python benchmarks/replication.py` draws the demo set, trains every variant with every seed until it has
spent --gflops, evaluates each at every resolution and patch size, and writes
benchmarks/results/replication.json, docs/images/replication-*.png and the tables of docs/replication.md.
Finished runs in --out are not repeated; with --from-results nothing is trained, and the page is written from
the results that are stored. FLOPs are those that metrics.jsonl counts: three forward passes of the images
that a run saw and, with a teacher, one of the teacher.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from pictures import draw_picture

from gpu.results import replace_section, save
from packvit.data import write_digits

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/replication.json"
PATCHES = (4, 6, 8, 12, 16)
RESOLUTIONS = (32, 48, 64, 80)
TRAIN_IMAGES, TEST_IMAGES = 20_000, 800
KEPT = ("resolution", "patch_size", "tokens_per_image", "gflops_per_image", "accuracy", "images")
TRAIN = ("-m", "packvit.train")
TEACHER = 8  # patch size of the fixed model that teaches

# Flags beside those of all runs; {runs} is the folder of the seed's runs.
FROM_TEACHER = ["--model", f"{{runs}}/fixed-{TEACHER}"]
VARIANTS: dict[str, list[str]] = {
    "flexible": [],
    **{f"fixed-{p}": ["--views.patch-sizes", str(p)] for p in PATCHES},
    "one-resolution": ["--views.resolution.low", "48", "--views.resolution.high", "48"],
    "no-drop": ["--views.drop.kind", "none"],
    "continued": FROM_TEACHER,
    "distilled": [
        *FROM_TEACHER,
        *["--distill.teachers", f"{{runs}}/fixed-{TEACHER}"],
        *["--distill.patch-sizes", str(TEACHER), "--distill.resolutions", "64"],
    ],
}


def draw_digits(folder: Path, test_images: int = TEST_IMAGES) -> None:
    """The shards of the demo set, unless they are there."""
    if not (folder / "val/classes.json").exists():  # written last
        write_digits(folder, TRAIN_IMAGES, test_images, seed=0)


def train_all(out: Path, gflops: int, seeds: Iterable[int]) -> list[dict]:
    """All runs of these seeds, on a set that is drawn first."""
    data = out / "data"
    draw_digits(data)
    return [train(out, data, variant, seed, gflops) for seed in seeds for variant in VARIANTS]


def train(out: Path, data: Path, variant: str, seed: int, gflops: int) -> dict:
    """One run at equal FLOPs, and what it is of."""
    runs = out / f"seed-{seed}"
    flags = [flag.format(runs=runs) for flag in VARIANTS[variant]]
    flags += ["--train.gflops", str(gflops), "--optim.warmup", str(gflops // 16)]
    flags += ["--eval.resolutions", *map(str, RESOLUTIONS), "--eval.patch-sizes", *map(str, PATCHES)]
    return {"variant": variant, "seed": seed, **train_once(runs / variant, data, seed, flags)}


def train_once(
    folder: Path, data: Path, seed: int, flags: Sequence[str], program: Sequence[str] = TRAIN
) -> dict:
    """Cost and accuracies of a run of the recipe `digits` with these flags, trained unless it is there.

    Args:
        program: arguments of Python, before those of packvit train.
    """
    results = folder / "eval" / "results.json"
    if not results.exists():
        common = ["--run-dir", str(folder), "--seed", str(seed), "--train.checkpoint-every", "100000"]
        common += ["--data.shards", str(data / "train"), "--data.val-shards", str(data / "val")]
        subprocess.run([sys.executable, *program, "digits", *common, *flags], check=True)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        **{name: last[name] for name in ("gflops_seen", "images_seen", "tokens_seen", "step")},
        "rows": [{name: row[name] for name in KEPT} for row in json.loads(results.read_text())["rows"]],
    }


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation; `sign` is + to show the sign of positive means."""
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{deviation}"


def machine() -> dict[str, str]:
    """Where results come from."""
    return {"machine": f"{platform.machine()}, {platform.python_version()}, torch {torch.__version__}"}


class Runs:
    """Accuracies by variant over seeds."""

    def __init__(self, results: list[dict]) -> None:
        self.results = results

    def of(self, variant: str, patches: tuple[int, ...], resolutions: tuple[int, ...]) -> list[float]:
        """Accuracy in percent of each seed, mean over the budgets named."""
        return [
            mean(
                100 * row["accuracy"]
                for row in result["rows"]
                if row["patch_size"] in patches and row["resolution"] in resolutions
            )
            for result in self.results
            if result["variant"] == variant
        ]

    def cell(self, variant: str, patches: tuple[int, ...], resolutions: tuple[int, ...]) -> str:
        """Mean and deviation over seeds."""
        return spread(self.of(variant, patches, resolutions))

    def difference(self, a: str, b: str, patches: tuple[int, ...], resolutions: tuple[int, ...]) -> str:
        """a - b, seed by seed: mean and deviation."""
        pairs = zip(self.of(a, patches, resolutions), self.of(b, patches, resolutions), strict=True)
        return spread([x - y for x, y in pairs], sign="+")

    def by_patch(self, variants: list[str], resolution: int) -> str:
        """One line a variant, one column a patch size."""
        lines = [f"| trained | {' | '.join(f'p {p}' for p in PATCHES)} | mean |", "| --- |" + " ---: |" * 6]
        for variant in variants:
            cells = [self.cell(variant, (p,), (resolution,)) for p in PATCHES]
            lines.append(
                f"| {variant} | {' | '.join(cells)} | {self.cell(variant, PATCHES, (resolution,))} |"
            )
        return "\n".join(lines)

    def by_resolution(self, variants: list[str]) -> str:
        """One line a variant, one column a resolution; mean over patch sizes."""
        lines = [
            f"| trained | {' | '.join(f'R {r}' for r in RESOLUTIONS)} | mean |",
            "| --- |" + " ---: |" * 5,
        ]
        for variant in variants:
            cells = [self.cell(variant, PATCHES, (r,)) for r in RESOLUTIONS]
            cells.append(self.cell(variant, PATCHES, RESOLUTIONS))
            lines.append(f"| {variant} | {' | '.join(cells)} |")
        return "\n".join(lines)


def tables(results: list[dict]) -> dict[str, str]:
    """The parts of docs/replication.md that are measured."""
    t = Runs(results)
    own = [
        f"| {p} | {t.cell('flexible', (p,), (64,))} | {t.cell(f'fixed-{p}', (p,), (64,))} | "
        f"{t.difference('flexible', f'fixed-{p}', (p,), (64,))} |"
        for p in PATCHES
    ]
    head = ["| p | flexible | fixed at p | difference |", "| ---: | ---: | ---: | ---: |"]
    images = {v: mean(r["images_seen"] for r in results if r["variant"] == v) for v in VARIANTS}
    cost = {v: mean(r["gflops_seen"] for r in results if r["variant"] == v) for v in VARIANTS}
    counts = [f"| {v} | {cost[v]:,.0f} | {images[v]:,.0f} |" for v in VARIANTS]
    everything = (PATCHES, RESOLUTIONS)
    pairs = {
        "variable - one resolution": ("flexible", "one-resolution"),
        "drop - none": ("flexible", "no-drop"),
        "distilled - continued": ("distilled", "continued"),
        "distilled - supervised": ("distilled", "flexible"),
    }
    return {
        "own": "\n".join(head + own),
        "patches": t.by_patch(["flexible", *(f"fixed-{p}" for p in PATCHES)], 64),
        "resolutions": t.by_resolution(["flexible", "one-resolution"]),
        "drop": t.by_resolution(["flexible", "no-drop"]),
        "distilled": t.by_patch(["flexible", "continued", "distilled"], 64),
        "differences": "\n".join(
            ["| | mean over all 20 budgets |", "| --- | ---: |"]
            + [f"| {name} | {t.difference(a, b, *everything)} |" for name, (a, b) in pairs.items()]
        ),
        "cost": "\n".join(["| trained | GFLOPs | images seen |", "| --- | ---: | ---: |", *counts]),
    }


def draw(results: list[dict], folder: Path) -> None:
    """A picture of each claim: replication-CLAIM.png."""
    t = Runs(results)

    def over_patches(variant: str) -> list[list[float]]:
        return [t.of(variant, (p,), (64,)) for p in PATCHES]

    def over_resolutions(variant: str) -> list[list[float]]:
        return [t.of(variant, PATCHES, (r,)) for r in RESOLUTIONS]

    own = {
        "each fixed at its own p": [t.of(f"fixed-{p}", (p,), (64,)) for p in PATCHES],
        "flexible": over_patches("flexible"),
    }
    fixed = {f"fixed at p = {p}": over_patches(f"fixed-{p}") for p in PATCHES}
    draw_picture(folder / "replication-patches.png", PATCHES, "patch size p", own, fixed)
    resolutions = {
        "R = 48 alone": over_resolutions("one-resolution"),
        "R from 24 to 64": over_resolutions("flexible"),
    }
    draw_picture(folder / "replication-resolutions.png", RESOLUTIONS, "resolution R of the test", resolutions)
    drop = {"none dropped": over_resolutions("no-drop"), "0.2 dropped": over_resolutions("flexible")}
    draw_picture(folder / "replication-drop.png", RESOLUTIONS, "resolution R of the test", drop)
    starts = {
        "continued, with labels": over_patches("continued"),
        "flexible, from scratch": over_patches("flexible"),
        "distilled": over_patches("distilled"),
    }
    draw_picture(folder / "replication-distilled.png", PATCHES, "patch size p", starts)


def main() -> None:
    """Train what is missing, then write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/replication"))
    parser.add_argument("--gflops", type=int, default=4000, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--from-results", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if arguments.from_results:
        results = json.loads(RESULTS.read_text())["results"]
    else:
        results = train_all(arguments.out, arguments.gflops, range(arguments.seeds))
        command = f"python benchmarks/replication.py --gflops {arguments.gflops} --seeds {arguments.seeds}"
        save(RESULTS, {"command": command, **machine(), "results": results})
    for name, text in tables(results).items():
        replace_section(name, [text], ROOT / "docs/replication.md")
    draw(results, ROOT / "docs/images")


if __name__ == "__main__":
    main()
