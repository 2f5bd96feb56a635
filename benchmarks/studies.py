"""Small studies on the demo's digits: which patch-embedding operator, which position embedding extrapolates,
what a residual stream in half precision and layers without biases cost.

`.venv/bin/python benchmarks/studies.py operators`, `... positions` (half an hour each on one core) and
`... residual` write benchmarks/results/study_NAME.json and the tables of docs/studies.md. A run of
a study is the recipe `digits` made small; the folder given by --work keeps finished runs, so that a stopped
study goes on. Runs of one seed start alike and see the same images, whatever is varied.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpu.results import replace_section
from packvit.common.device import device_name
from packvit.data import write_digits
from packvit.models import ViTConfig
from packvit.train.config import Config
from packvit.train.recipes.digits import digits
from packvit.train.run import run

ROOT = Path(__file__).parent.parent
# No clutter: the runs are too short to learn to look past it.
TRAIN_IMAGES, TEST_IMAGES, CLUTTER = 20_000, 1_000, 0.0

OPERATORS = {
    "plain_bilinear_antialias": {"patch_operator": "plain_bilinear_antialias"},
    "bilinear": {"patch_operator": "bilinear"},
    "bilinear_antialias": {"patch_operator": "bilinear_antialias"},
    "bicubic_antialias": {"patch_operator": "bicubic_antialias"},
    "natural": {"patch_operator": "natural"},
}
POSITIONS = {
    "factorized, learned, absolute": {"pos_coords": "absolute"},
    "factorized, learned, fractional": {"pos_coords": "fractional"},
    "factorized, learned, fractional_aspect": {"pos_coords": "fractional_aspect"},
    "factorized, sinusoidal, fractional": {"pos_table": "sinusoidal"},
    "factorized, fourier, fractional": {"pos_table": "fourier"},
    "grid_2d, fractional": {"pos_embed": "grid_2d"},
    "rope_2d, absolute": {"pos_embed": "rope_2d", "pos_coords": "absolute"},
    "none": {"pos_embed": "none"},
}
# Fields of the model, and of `train` those that start with it.
RESIDUALS = {
    "fp32 residual stream": {},
    "bf16 residual stream": {"train.residual": "bf16"},
    "fp32, no biases": {"biases": False},
    "bf16, no biases": {"train.residual": "bf16", "biases": False},
}


def small(work: Path, steps: int, low: int, high: int) -> Config:
    """The demo's recipe at a cost of about a minute on one core, all in one process."""
    recipe = digits()
    return replace(
        recipe,
        data=replace(
            recipe.data, shards=(str(work / "data/train"),), val_shards=(str(work / "data/val"),), workers=0
        ),
        views=replace(recipe.views, resolution=replace(recipe.views.resolution, low=low, high=high)),
        packing=replace(recipe.packing, sequences=8),
        model=replace(recipe.model, depth=3),
        optim=replace(recipe.optim, warmup=30),
        train=replace(recipe.train, steps=steps, checkpoint_every=steps, log_every=100, ema=0.98),
    )


def operator_config(work: Path) -> Config:
    """Trained with five patch sizes; tested with these, with two between them and with one beyond."""
    config = small(work, 500, 24, 40)
    tested = (4, 5, 6, 8, 10, 12, 16, 20)
    return replace(config, eval=replace(config.eval, resolutions=(40,), patch_sizes=tested))


def position_config(work: Path) -> Config:
    """Trained with one patch size up to a resolution of 48; tested up to three times that."""
    config = small(work, 500, 24, 48)
    return replace(
        config,
        views=replace(config.views, patch_sizes=(6,)),
        eval=replace(config.eval, resolutions=(48, 72, 96, 144), patch_sizes=(6,)),
    )


def residual_config(work: Path) -> Config:
    """Products in bf16, as on a GPU; tested at the resolutions of training."""
    config = small(work, 500, 24, 40)
    return replace(
        config,
        train=replace(config.train, precision="bf16"),
        eval=replace(config.eval, resolutions=(24, 32, 40), patch_sizes=(6,)),
    )


STUDIES = {
    "operators": (operator_config, OPERATORS, "patch_size"),
    "positions": (position_config, POSITIONS, "resolution"),
    "residual": (residual_config, RESIDUALS, "resolution"),
}


def vary(base: Config, fields: dict[str, Any]) -> Config:
    """`base` with some fields of its model, and those named `train.` of its training, replaced."""
    train = {name.removeprefix("train."): v for name, v in fields.items() if name.startswith("train.")}
    model = {name: v for name, v in fields.items() if not name.startswith("train.")}
    return replace(
        base,
        model=ViTConfig.from_dict(base.model.to_dict() | model),
        train=replace(base.train, **train),
    )


def draw_data(work: Path) -> None:
    """The images of all studies, unless they are there."""
    if not (work / "data/val/classes.json").exists():  # written last
        write_digits(work / "data", TRAIN_IMAGES, TEST_IMAGES, seed=0, clutter=CLUTTER)


def conditions(base: Config, seeds: Sequence[int]) -> dict:
    """Where and with what a study was made."""
    return {
        "hardware": f"{device_name(torch.device('cpu'))}, 1 thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seeds": list(seeds),
        "test_images": TEST_IMAGES,
        "trained_with": {
            "steps": base.train.steps,
            "patch_sizes": list(base.views.patch_sizes),
            "resolutions": [base.views.resolution.low, base.views.resolution.high],
        },
    }


def study(name: str, work: Path, seeds: Sequence[int]) -> dict:
    """Train every variant with every seed; accuracies by what is tested."""
    make, variants, axis = STUDIES[name]
    draw_data(work)
    base = make(work)
    accuracy: dict[str, dict[str, list[float]]] = {variant: {} for variant in variants}
    for seed in seeds:
        for variant, fields in variants.items():
            run_dir = work / name / f"{variant.replace(', ', '-')}-{seed}"
            results = run_dir / "eval/results.json"
            if not results.exists():
                run(replace(vary(base, fields), run_dir=run_dir, seed=seed))
            for row in json.loads(results.read_text())["rows"]:
                accuracy[variant].setdefault(str(row[axis]), []).append(row["accuracy"])
    return {
        "command": f"python benchmarks/studies.py {name} --seeds {' '.join(map(str, seeds))}",
        **conditions(base, seeds),
        "axis": axis,
        "accuracy": accuracy,
    }


def table(results: dict) -> str:
    """Mean and standard deviation over the seeds, in percent; the best of a column is bold."""
    accuracy = results["accuracy"]
    columns = list(next(iter(accuracy.values())))
    short = "p" if results["axis"] == "patch_size" else "R"
    means = {v: {c: statistics.mean(accuracy[v][c]) for c in columns} for v in accuracy}
    lines = ["| | " + " | ".join(f"{short} = {c}" for c in columns) + " |"]
    lines += ["| --- |" + " ---: |" * len(columns)]
    for variant, values in accuracy.items():
        cells = []
        for column in columns:
            spread = statistics.stdev(values[column]) if len(values[column]) > 1 else 0.0
            best = means[variant][column] == max(means[v][column] for v in means)
            mean = f"{means[variant][column]:.1%}".rstrip("%")
            cells.append((f"**{mean}**" if best else mean) + f" ± {100 * spread:.1f}")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", describe(results)])


def describe(results: dict) -> str:
    """The conditions of a study, as a sentence below its table."""
    seeds, trained = results["seeds"], results["trained_with"]
    runs = f"mean ± standard deviation of n = {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    if len(seeds) == 1:
        runs = f"one training each (seed {seeds[0]})"
    return (
        f"Accuracy in percent on {results['test_images']} test canvases, {runs}; "
        f"{trained['steps']} steps, patch sizes {', '.join(map(str, trained['patch_sizes']))}, resolutions "
        f"{trained['resolutions'][0]} to {trained['resolutions'][1]}. {results['hardware']}, "
        f"Python {results['python']}, torch {results['torch']}; `{results['command']}`."
    )


def write_results(name: str, results: dict, text: str) -> None:
    """Results as JSON, and their table between the marks of docs/studies.md."""
    path = ROOT / f"benchmarks/results/study_{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    replace_section(name, [text], ROOT / "docs/studies.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "runs/studies")
    arguments = parser.parse_args()
    results = study(arguments.study, arguments.work, arguments.seeds)
    write_results(arguments.study, results, table(results))


if __name__ == "__main__":
    main()
