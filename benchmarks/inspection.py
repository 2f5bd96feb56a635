"""The demo's model inspected: the numbers and pictures of docs/inspect.md.

`make demo`, then `python benchmarks/inspection.py`: runs `packvit inspect` twice, at one resolution for what
the patch size does and at four for ensembles, copies the pictures to docs/images and rewrites the page's
tables.
"""

import argparse
import json
import platform
import shutil
from itertools import combinations
from pathlib import Path
from statistics import mean

import torch

from gpu.results import replace_section
from packvit.cli import dispatch

ROOT = Path(__file__).parents[1]
PATCHES = ("4", "6", "8", "12", "16")
RUNS = {
    "one-resolution": ["--resolution", "48", "--pictures", "2"],
    "all-budgets": ["--resolutions", "32", "48", "64", "80", "--pictures", "0"],
}
# The pictures on the page, by the run that they are taken from.
PICTURES = {"one-resolution": ("cka", "knn", "similarity", "attention"), "all-budgets": ("ensembles",)}
IMAGES = "2000"
SHOWN = 4  # ensembles


def inspect(name: str, model: Path, shards: Path, work: Path) -> dict:
    """What inspect.json says of one run; its pictures go to docs/images."""
    given = ["--patch-sizes", *PATCHES, *RUNS[name], "--images", IMAGES, "--device", "cpu"]
    status = dispatch(["inspect", str(model), "--shards", str(shards), *given, "--out", str(work / name)])
    if status:
        raise SystemExit(status)
    for picture in PICTURES[name]:
        shutil.copy(work / name / f"{picture}.png", ROOT / f"docs/images/inspect-{picture}.png")
    return json.loads((work / name / "inspect.json").read_text())


def cka_table(found: dict) -> str:
    """CKA by place, mean over pairs of neighbouring patch sizes and over all pairs."""
    count = len(found["settings"])
    near = [(i, i + 1) for i in range(count - 1)]
    lines = ["| | " + " | ".join(found["cka"]["pooled"]) + " |"]
    lines.append("| --- |" + " ---: |" * len(found["cka"]["pooled"]))
    for kind, name in (("pooled", "means of tokens"), ("tokens", "single tokens")):
        for pairs, which in (
            (near, "neighbouring patch sizes"),
            (list(combinations(range(count), 2)), "all pairs"),
        ):
            cells = [f"{mean(matrix[a][b] for a, b in pairs):.2f}" for matrix in found["cka"][kind].values()]
            cells += [""] * (len(found["cka"]["pooled"]) - len(cells))
            lines.append(f"| {name}, {which} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def knn_text(found: dict) -> str:
    """The accuracies within and across settings in a sentence."""
    accuracy, count = found["knn"]["accuracy"], len(found["settings"])
    within = mean(accuracy[i][i] for i in range(count))
    across = mean(accuracy[i][j] for i in range(count) for j in range(count) if i != j)
    return (
        f"{found['knn']['neighbours']} neighbours classify {within:.1%} of the images correctly if image and "
        f"neighbours are shown at the same patch size, and {across:.1%} if they are shown at two different "
        f"ones: a mode switch of {100 * found['knn']['mode_switch']:.1f} points."
    )


def ensemble_table(found: dict) -> str:
    """The pairs and the triples that were best on the half that chose, measured on the other."""
    ensembles = found["ensembles"]
    lines = [
        "| mean of | GFLOPs | accuracy | best one setting | GFLOPs | accuracy | gain in points |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for size in (2, 3):
        rows = [row for row in ensembles["rows"] if len(row["settings"]) == size]
        rows.sort(key=lambda row: (-row["chosen_accuracy"], row["gflops_per_image"]))
        lines += [
            f"| {', '.join(row['settings'])} | {row['gflops_per_image']:.3f} | {row['accuracy']:.1%} "
            f"| {row['single']} | {row['single_gflops_per_image']:.3f} | {row['single_accuracy']:.1%} "
            f"| {100 * row['gain']:+.1f} ({100 * row['gain_low']:+.1f} to {100 * row['gain_high']:+.1f}) |"
            for row in rows[:SHOWN]
        ]
    lines.append("")
    for size, name in ((2, "pairs"), (3, "triples")):
        rows = [row for row in ensembles["rows"] if len(row["settings"]) == size]
        better, worse = sum(row["gain_low"] > 0 for row in rows), sum(row["gain_high"] < 0 for row in rows)
        lines.append(
            f"{better} of the {len(rows)} {name} are significantly better than their rival, "
            f"{worse} significantly worse."
        )
    best = max(ensembles["singles"], key=lambda row: row["chosen_accuracy"])
    lines.append(
        f"The best single setting regardless of cost, {best['setting']}, reaches {best['accuracy']:.1%} "
        f"({best['accuracy_low']:.1%} to {best['accuracy_high']:.1%})."
    )
    luckiest = max(ensembles["singles"], key=lambda row: row["accuracy"])
    lines.append(
        f"Chosen on the measured half itself, it would be {luckiest['setting']}, "
        f"with {luckiest['accuracy']:.1%}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "runs/digits")
    parser.add_argument("--shards", type=Path, default=ROOT / "runs/digits-data/val")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/inspect")
    options = parser.parse_args()
    found = {name: inspect(name, options.model, options.shards, options.work) for name in RUNS}
    one, all_budgets = found["one-resolution"], found["all-budgets"]
    where = (
        f"{one['images']} test canvases, the model of `make demo`; torch {torch.__version__}, Python "
        f"{platform.python_version()}; `python benchmarks/inspection.py`."
    )
    texts = {
        "cka": cka_table(one),
        "knn": knn_text(one),
        "ensembles": ensemble_table(all_budgets),
        "provenance": where,
    }
    for name, text in texts.items():
        replace_section(name, [text], ROOT / "docs/inspect.md")


if __name__ == "__main__":
    main()
