"""Position embeddings in longer trainings: an added table, rotations, and both, at two learning rates.

`.venv/bin/python benchmarks/positions_long.py` trains with patches of several sizes, tests up to twice the
resolution of training, and writes benchmarks/results/study_positions_long.json and the tables of
docs/studies.md. The first seed trains every kind at every rate of --rates, the others every kind at the rate
that was better for it: 24 runs of two to three minutes on one core. All runs of one seed come before those of
the next, and the tables are written after each seed, so that a study that is stopped has a fair one; the
folder given by --work keeps finished runs. Runs of one seed start alike and see the same images.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from studies import ROOT, conditions, describe, draw_data, small, vary, write_results

from packvit.train.config import Config
from packvit.train.run import run

NAME = "positions_long"
STEPS = 800
USUAL = "factorized"  # what a ViTConfig has
KINDS = {
    "none": {"pos_embed": "none"},
    USUAL: {},
    "rope_2d, absolute": {"pos_embed": "rope_2d", "pos_coords": "absolute"},
    "rope_2d, fractional_aspect": {"pos_embed": "rope_2d", "pos_coords": "fractional_aspect"},
    f"{USUAL} + rope_2d, absolute": {"rope_coords": "absolute"},
    f"{USUAL} + rope_2d, fractional_aspect": {"rope_coords": "fractional_aspect"},
}
RESOLUTIONS, PATCH_SIZES = (48, 96), (4, 12)  # of the test
TRAINED_AT = RESOLUTIONS[0]
Accuracy = dict[str, dict[str, dict[str, list[float]]]]  # of kind, rate and setting: each seed's


def base_config(work: Path) -> Config:
    """Trained with four patch sizes up to a resolution of 48; tested up to twice that."""
    config = small(work, STEPS, 24, TRAINED_AT)
    return replace(
        config,
        views=replace(config.views, patch_sizes=(4, 6, 8, 12)),
        eval=replace(config.eval, resolutions=RESOLUTIONS, patch_sizes=PATCH_SIZES, cost=False),
    )


def accuracy_of(base: Config, work: Path, kind: str, rate: float, seed: int) -> dict[str, float]:
    """Accuracy of every setting, such as r48-p4, of one run; one that is finished is read."""
    run_dir = work / NAME / f"{kind.replace(', ', '-').replace(' + ', '+')}-x{rate:g}-{seed}"
    results = run_dir / "eval/results.json"
    if not results.exists():
        optim = replace(base.optim, lr=rate * base.optim.lr, muon_lr=rate * base.optim.muon_lr)
        run(replace(vary(base, KINDS[kind]), optim=optim, run_dir=run_dir, seed=seed))
    found = {row["setting"]: row["accuracy"] for row in json.loads(results.read_text())["rows"]}
    # A run that was finished earlier may have been tested at more.
    return {name: found[name] for name in (f"r{r}-p{p}" for r in RESOLUTIONS for p in PATCH_SIZES)}


def over_patch_sizes(accuracy: dict[str, list[float]], resolution: int) -> list[float]:
    """The mean over the patch sizes of the test, of each seed."""
    settings = [accuracy[f"r{resolution}-p{p}"] for p in PATCH_SIZES]
    return [statistics.mean(each) for each in zip(*settings, strict=True)]


def better_rate(rates: dict[str, dict[str, list[float]]]) -> str:
    """The rate that is better at the resolution of training, by the first seed."""
    return max(rates, key=lambda rate: over_patch_sizes(rates[rate], TRAINED_AT)[0])


def columns_of(accuracy: dict[str, list[float]]) -> dict[str, list[float]]:
    """What the table shows of one kind at one rate: each seed's."""
    columns: dict[str, list[float]] = {}
    for r in RESOLUTIONS:
        columns |= {f"R = {r}, p = {p}": accuracy[f"r{r}-p{p}"] for p in PATCH_SIZES}
        columns[f"R = {r}, mean"] = over_patch_sizes(accuracy, r)
    return columns


def table(accuracy: Accuracy) -> list[str]:
    """Mean and standard deviation over the seeds, at each kind's better rate; the best is bold."""
    rates = {kind: better_rate(accuracy[kind]) for kind in accuracy}
    rows = {kind: columns_of(accuracy[kind][rate]) for kind, rate in rates.items()}
    columns = list(rows[USUAL])
    lines = ["| | rate | " + " | ".join(columns) + " |", "| --- | ---: |" + " ---: |" * len(columns)]
    for kind, row in rows.items():
        cells = []
        for column in columns:
            mean = statistics.mean(row[column])
            best = mean == max(statistics.mean(other[column]) for other in rows.values())
            spread = f" ± {100 * statistics.stdev(row[column]):.1f}" if len(row[column]) > 1 else ""
            cells.append(f"{'**' * best}{100 * mean:.1f}{'**' * best}{spread}")
        lines.append(f"| {kind} | x{rates[kind]} | {' | '.join(cells)} |")
    return lines


def ahead(accuracy: Accuracy) -> list[str]:
    """By how many points each seed's run is ahead of the default's, both at their better rates."""
    usual = accuracy[USUAL][better_rate(accuracy[USUAL])]
    lines = ["| | " + " | ".join(f"R = {r}" for r in RESOLUTIONS) + " |"]
    lines += ["| --- |" + " --- |" * len(RESOLUTIONS)]
    for kind, rates in accuracy.items():
        cells = []
        for resolution in RESOLUTIONS if kind != USUAL else ():
            own, its = (over_patch_sizes(each, resolution) for each in (rates[better_rate(rates)], usual))
            cells.append(", ".join(f"{100 * (a - b):+.1f}" for a, b in zip(own, its, strict=True)))
        if cells:
            lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def page(results: dict) -> str:
    """Both tables and what they were made with."""
    accuracy = results["accuracy"]
    patches, rates = ", ".join(map(str, PATCH_SIZES)), list(accuracy[USUAL])
    better = f", the better of {' and '.join(rates)} at R = {TRAINED_AT} with the first seed"
    chosen = better if len(rates) > 1 else ""
    return "\n".join(
        [
            *table(accuracy),
            "",
            describe(results),
            f"The means are over p = {patches}; rates are times those of the recipe{chosen}.",
            "",
            f"Points ahead of `{USUAL}`, for each seed:",
            "",
            *ahead(accuracy),
        ]
    )


def study(work: Path, seeds: Sequence[int], rates: Sequence[float]) -> None:
    """Train, and write what all kinds have, after each seed; rates are times the recipe's."""
    draw_data(work)
    base = base_config(work)
    accuracy: Accuracy = {kind: {f"{rate:g}": {} for rate in rates} for kind in KINDS}
    for number, seed in enumerate(seeds, 1):
        better = {} if number == 1 else {kind: better_rate(accuracy[kind]) for kind in KINDS}
        for rate in rates:
            for kind in KINDS:
                if better.get(kind, f"{rate:g}") != f"{rate:g}":
                    continue
                for setting, value in accuracy_of(base, work, kind, rate, seed).items():
                    accuracy[kind][f"{rate:g}"].setdefault(setting, []).append(value)
        done = seeds[:number]
        results = {
            "command": f"python benchmarks/{NAME}.py --seeds {spaced(done)} --rates {spaced(rates)}",
            **conditions(base, done),
            "better_rate": {kind: better_rate(accuracy[kind]) for kind in KINDS},
            "accuracy": accuracy,
        }
        write_results(NAME, results, page(results))


def spaced(numbers: Sequence[float]) -> str:
    """As a command has them."""
    return " ".join(f"{number:g}" for number in numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs/studies")
    arguments = parser.parse_args()
    study(arguments.work, arguments.seeds, arguments.rates)


if __name__ == "__main__":
    main()
