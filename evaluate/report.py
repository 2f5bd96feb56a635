"""What an evaluation leaves in a folder and shows: results.json, skipped.jsonl, a table, and a figure.

The first of the evaluators' values is the one by which budgets are compared. The figure is named after it,
such as accuracy.png.
"""

import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from packvit.common.display import Display
from packvit.common.files import write_whole
from packvit.common.json_lines import finite
from packvit.common.plots import COLOURS, MARKERS, new_figure, save_figure
from packvit.evaluate.grid import SETTING_AND_COST, Evaluation
from packvit.models import PackedViT

UNFINISHED = ".unfinished"  # folder of results until all are there


def write_results(
    evaluation: Evaluation,
    model: PackedViT,
    resolutions: Sequence[int],
    patch_sizes: Sequence[int],
    out: Path,
    display: Display,
    *,
    keep: bool = False,
) -> None:
    """Evaluate a model at every pair, write what came out to `out` and show it; every rank calls it.

    Args:
        keep: rename a folder `out` that has results to the first free of `out`-1, -2, ..., when the new ones
            are complete, instead of replacing its files.
    """
    pairs = len(resolutions) * len(patch_sizes)
    results = []
    for result in evaluation.grid(model, resolutions, patch_sizes):
        results.append(result)
        display.say(
            f"Evaluated {len(results)} of {pairs}: resolution {result['resolution']}, patch size "
            f"{result['patch_size']}: {result[measured(result)[0]]:.1%} of {result['images']} images"
        )
    if not evaluation.ranks.is_main:
        return
    unfinished = out / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if any(result != finite(result) for result in results):
        display.say("The model's outputs are not finite at some budgets: results.json has null there")
    text = json.dumps({"rows": finite(results)}, indent=1, allow_nan=False)
    write_whole(unfinished / "results.json", text + "\n")
    skipped = "".join(json.dumps(line) + "\n" for line in evaluation.skipped)
    write_whole(unfinished / "skipped.jsonl", skipped)
    if evaluation.skipped:
        number = len(evaluation.skipped)
        display.say(f"{number} images could not be used: {out / 'skipped.jsonl'} names them")
    display.draw(partial(draw_results, results, unfinished / f"{measured(results[0])[0]}.png"))
    if kept := replace_results(out, keep):
        display.say(f"Kept the results of before as {kept}")
    show_results(results, display)


def show_results(results: list[dict[str, Any]], display: Display) -> None:
    """A table of the evaluators' values by budget, and the best of the first of them."""
    first, *others = measured(results[0])
    best = max(results, key=lambda result: result[first])
    display.table(
        f"{title(first)} by budget",
        ["resolution", "patch size", "tokens/image", "GFLOPs/image", first, *others],
        [
            [
                str(result["resolution"]),
                str(result["patch_size"]),
                f"{result['tokens_per_image']:.1f}",
                f"{result['gflops_per_image']:.3f}",
                f"{result[first]:.1%}" + (" *" if result is best else "  "),
                *(f"{result[name]:.3f}" for name in others),
            ]
            for result in results
        ],
    )
    display.say(
        f"Best (*): {best[first]:.1%} at resolution {best['resolution']}, patch size {best['patch_size']}"
    )


def measured(result: dict[str, Any]) -> list[str]:
    """The names of the evaluators' values in a row of results.json."""
    return [name for name in result if name not in SETTING_AND_COST]


def title(name: str) -> str:
    """The name of a value as a person writes it at the start of a line."""
    return name.replace("_", " ").capitalize()


def replace_results(folder: Path, keep: bool) -> Path | None:
    """Move finished results to their places in `folder`; returns the new name of the folder if it was kept.

    Args:
        keep: see `write_results`.
    """
    place = folder.absolute()  # a path such as `.` has no name
    kept = None
    if keep and (place / "results.json").exists():
        kept = next(path for n in count(1) if not (path := place.with_name(f"{place.name}-{n}")).exists())
        place.rename(kept)
        place.mkdir()
    unfinished = (kept or place) / UNFINISHED
    for path in sorted(unfinished.iterdir()):
        os.replace(path, place / path.name)
    unfinished.rmdir()
    return kept and folder.with_name(kept.name) if folder.name else kept


def draw_results(results: Sequence[dict[str, Any]], path: Path) -> None:
    """The first of the evaluators' values against tokens per image, one line per patch size.

    Args:
        results: rows of results.json.
        path: PNG; its folder is made.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    name = measured(results[0])[0]
    for number, p in enumerate(sorted({result["patch_size"] for result in results})):
        line = [result for result in results if result["patch_size"] == p]
        line.sort(key=lambda result: result["tokens_per_image"])
        axes.plot(
            [result["tokens_per_image"] for result in line],
            [100 * result[name] for result in line],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            label=f"patch size {p}",
        )
        for result in line:
            place = (result["tokens_per_image"], 100 * result[name])
            axes.annotate(
                f"{result['resolution']}", place, (0, 6), textcoords="offset points", ha="center", size=7
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("tokens per image (mean)")
    axes.set_ylabel(f"{title(name).lower()}, %")
    axes.set_title("One checkpoint at every budget (numbers: resolution in pixels)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
