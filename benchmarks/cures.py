"""Why the flexible model is behind at equal FLOPs, and what helps: weights, curricula, layers of each size.

`python benchmarks/cures.py` trains the flexible model of benchmarks/replication.py with one change each, for
the same FLOPs, compares it with the fixed models in benchmarks/results/replication.json, and writes
benchmarks/results/cures.json, docs/images/cures.png and the tables of docs/replication.md. The page is
written after each seed, with all finished runs in --out, which are not repeated.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from pictures import draw_picture
from replication import (
    PATCHES,
    RESOLUTIONS,
    ROOT,
    TRAIN,
    Runs,
    draw_digits,
    machine,
    spread,
    train_once,
)

from gpu.results import replace_section, save
from gpu.results import table as lines_of

PAGE, RESULTS = ROOT / "docs/replication.md", ROOT / "benchmarks/results/cures.json"
BEFORE = ROOT / "benchmarks/results/replication.json"
GFLOPS = 4000
SHOWN_AT = (64,)  # resolution of the tables, as on the rest of the page
# Inverse to the cost of an image, so that every patch size is given as many FLOPs.
SAME_FLOPS = ("1", "2.5", "4.6", "10", "16.5")
EQUAL = ("1",) * len(PATCHES)
ONLY_8, LARGE = ("0", "0", "1", "0", "0"), ("0", "0", "0", "1", "1")
FLEXIBLE, OWN = "flexible", "fixed at its own p"


def curriculum(first: tuple[str, ...], last: tuple[str, ...], start: int, end: int) -> list[str]:
    """Flags for weights of the patch sizes that change between `start` and `end`, in images."""
    flags = ["--views.patch-weights", *first, "--views.curriculum.patch-weights", *last]
    return [*flags, "--views.curriculum.start", str(start), "--views.curriculum.end", str(end)]


# Curricula spend about half the FLOPs before they change.
VARIANTS = {
    FLEXIBLE: [],
    "drop 0.5": ["--views.drop.mean", "0.5", "--views.drop.maximum", "0.9"],
    "consistency 0.1": ["--consistency.weight", "0.1"],
    "consistency 1": ["--consistency.weight", "1"],
    "own biases": [],
    "own norms": [],
    "as many FLOPs for each size": ["--views.patch-weights", *SAME_FLOPS],
    "12 and 16 first": curriculum(LARGE, EQUAL, 120_000, 150_000),
    "8 first": curriculum(ONLY_8, EQUAL, 54_000, 54_000),
    "8 first, then as many FLOPs": curriculum(ONLY_8, SAME_FLOPS, 54_000, 54_000),
}
# Their models are not the library's: the kinds of benchmarks/per_size.py.
KINDS = {"own biases": "own-biases", "own norms": "own-norms"}


def folder_of(out: Path, variant: str, seed: int) -> Path:
    """The folder of a run."""
    return out / f"seed-{seed}" / variant.replace(",", "").replace(" ", "-")


def train(out: Path, variant: str, seed: int) -> dict:
    """One run, and what it is of."""
    flags = ["--train.gflops", str(GFLOPS), "--optim.warmup", str(GFLOPS // 16), *VARIANTS[variant]]
    flags += ["--eval.resolutions", *map(str, RESOLUTIONS)]
    flags += ["--eval.patch-sizes", *map(str, PATCHES), "--eval.no-cost"]
    program = TRAIN
    if variant in KINDS:
        program = (str(ROOT / "benchmarks/per_size.py"), "--kind", KINDS[variant], "--")
    result = train_once(folder_of(out, variant, seed), out / "data", seed, flags, program)
    return {"variant": variant, "seed": seed, **result}


def finished(out: Path, seeds: Sequence[int]) -> list[dict]:
    """All runs of these seeds that are finished."""
    return [train(out, v, seed) for seed in seeds for v in VARIANTS if is_finished(out, v, seed)]


def is_finished(out: Path, variant: str, seed: int) -> bool:
    """Whether a run has been evaluated."""
    return (folder_of(out, variant, seed) / "eval/results.json").exists()


def own_sizes(fixed: Runs, patches: Sequence[int]) -> list[float]:
    """The fixed models, each at its own patch size: the mean over sizes, of each seed."""
    each = [fixed.of(f"fixed-{p}", (p,), SHOWN_AT) for p in patches]
    return [mean(values) for values in zip(*each, strict=True)]


def table(results: list[dict], fixed: Runs) -> list[str]:
    """Accuracy at each patch size, and the share of the gap that is closed."""
    runs, goal = Runs(results), own_sizes(fixed, PATCHES)
    flexible = mean(runs.of(FLEXIBLE, PATCHES, SHOWN_AT))
    images = mean(r["images_seen"] for r in fixed.results)
    own = [spread(own_sizes(fixed, (p,))) for p in PATCHES]
    rows = [["each fixed at its own p", str(len(goal)), *own, spread(goal), "100 %", f"{images:,.0f}"]]
    for variant in VARIANTS:
        values = runs.of(variant, PATCHES, SHOWN_AT)
        if not values:
            continue
        closed = 100 * (mean(values) - flexible) / (mean(goal) - flexible)
        images = mean(r["images_seen"] for r in results if r["variant"] == variant)
        cells = [runs.cell(variant, (p,), SHOWN_AT) for p in PATCHES]
        shown = "" if variant == FLEXIBLE else f"{closed:.0f} %"
        rows.append([variant, str(len(values)), *cells, spread(values), shown, f"{images:,.0f}"])
    header = ["", "seeds", *(f"p {p}" for p in PATCHES), "mean", "of the gap", "images"]
    return lines_of(header, rows)


def draw(results: list[dict], fixed: Runs, path: Path) -> None:
    """Accuracy over patch size: a line for each model."""
    runs = Runs(results)
    lines = {OWN: [own_sizes(fixed, (p,)) for p in PATCHES]}
    for variant in VARIANTS:
        if runs.of(variant, PATCHES, SHOWN_AT):
            lines[variant] = [runs.of(variant, (p,), SHOWN_AT) for p in PATCHES]
    draw_picture(path, PATCHES, "patch size p", lines)


def write(results: list[dict], seeds: Sequence[int]) -> None:
    """The results, their table and their picture."""
    before = json.loads(BEFORE.read_text())["results"]
    fixed = Runs([r for r in before if r["variant"].startswith("fixed-") and r["seed"] in seeds])
    save(RESULTS, {"command": "python benchmarks/cures.py", **machine(), "results": results})
    replace_section("cures", table(results, fixed), PAGE)
    draw(results, fixed, ROOT / "docs/images/cures.png")


def main() -> None:
    """Train what is missing; write after each seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/cures"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    draw_digits(arguments.out / "data")
    for number, seed in enumerate(arguments.seeds, 1):
        for variant in arguments.variants:
            train(arguments.out, variant, seed)
        done = arguments.seeds[:number]
        write(finished(arguments.out, done), done)


if __name__ == "__main__":
    main()
