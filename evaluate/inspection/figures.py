"""Figures of numbers: CKA by layer, neighbours across budgets, ensembles over their cost."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from packvit.common.plots import COLOURS, MARKERS, new_axes, new_figure, save_figure
from packvit.evaluate.inspection.ensembles import SIZES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = 0.42  # inches of a cell with a number of two digits
MOST_PAIRS = 40  # in a figure
TALLEST = 25  # points of accuracy in a figure; what is worse lies below
CLOSE = 1.2  # ratio of costs at which two names lie over each other
LIGHT = 0.62  # of a colour scale; numbers on darker cells are white


def draw_cka(cka: dict[str, dict[str, list]], names: Sequence[str], path: Path) -> None:
    """CKA of pairs of settings by place in the model, of pooled features above and of tokens below.

    If there are many pairs, those with the least similar pooled features are shown.

    Args:
        cka: `pooled` and `tokens`, each by place [S][S], null if features do not vary.
        names: of the settings.
        path: PNG; its folder is created if needed.
    """
    every = list(combinations(range(len(names)), 2))
    mean = np.array(list(cka["pooled"].values()), float).mean(0)
    pairs = sorted(sorted(every, key=lambda pair: mean[pair])[:MOST_PAIRS])
    labels = [f"{names[a]}, {names[b]}" for a, b in pairs]
    widest = max(map(len, cka.values()))
    figure = new_figure(2.6 + CELL * widest, 1.6 + 2 * (0.9 + 0.24 * len(pairs)))
    above, below = figure.subplots(2, 1)
    for axes, kind, title in (
        (above, "pooled", "mean of each image's tokens"),
        (below, "tokens", "single tokens, on the coarsest setting's grid"),
    ):
        places = list(cka[kind])
        values = [[cka[kind][place][a][b] for place in places] for a, b in pairs]
        draw_numbers(axes, np.array(values, float), labels, places)
        axes.set_xlim(-0.5, widest - 0.5)
        axes.set_title(title, size=9, loc="left")
        axes.tick_params(axis="x", rotation=45)
    figure.suptitle("CKA between settings, by sublayer (in hundredths)", size=10)
    save_figure(figure, path)


def draw_agreement(
    accuracy: Sequence[Sequence[float]], neighbours: int, names: Sequence[str], path: Path
) -> None:
    """k-NN accuracy by the setting of the classified images and of their neighbours; see `draw_cka`."""
    side = 1.9 + 0.46 * len(names)
    figure = new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    values = np.array(accuracy, float)
    # The scale begins at a whole ten percent, so that differences show.
    draw_numbers(axes, values, names, names, math.floor(10 * values.min()) / 10)
    axes.set_xlabel("setting of the images that answer", size=8)
    axes.set_ylabel("setting of the image that asks", size=8)
    axes.tick_params(axis="x", rotation=45)
    axes.set_title(f"Accuracy of {neighbours} neighbours, %", size=9)
    save_figure(figure, path)


def draw_numbers(
    axes: "Axes", values: np.ndarray, rows: Sequence[str], columns: Sequence[str], low: float = 0.0
) -> None:
    """A heat map of shares, from `low` to 1, with its numbers in hundredths; NaN stays empty."""
    axes.imshow(values, vmin=low, vmax=1, cmap="Blues", aspect="auto")
    for (row, col), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > low + LIGHT * (1 - low) else "black"
            axes.text(col, row, f"{100 * value:.0f}", ha="center", va="center", size=7, color=colour)
    axes.set_xticks(range(len(columns)), columns, size=7)
    axes.set_yticks(range(len(rows)), rows, size=7)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_ensembles(ensembles: Mapping[str, Any], path: Path) -> None:
    """Accuracy over cost of single settings and of their ensembles, on the images that were not used to
    choose.

    The lines go through the settings that the other images choose at each cost; the best on these images
    would merely be the luckiest.

    Args:
        ensembles: of inspect.json.
    """
    figure, axes = new_axes(6.5, 4.2)
    singles, rows = ensembles["singles"], ensembles["rows"]
    by_size = {size: [row for row in rows if len(row["settings"]) == size] for size in SIZES}
    groups = [("one setting", singles)]
    groups += [(f"mean of {size}", group) for size, group in by_size.items() if group]
    for (name, group), colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
        front = list(choose_by_cost(group))
        line = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2, "label": name}
        axes.plot(list(map(cost_of, front)), list(map(percent, front)), **line)
        every = list(map(cost_of, group)), list(map(percent, group))
        axes.scatter(*every, s=6, color=colour, alpha=0.35, linewidths=0)
    named = math.inf  # cost of the setting that was named last
    for row in reversed(list(choose_by_cost(singles))):
        ends = [100 * row["accuracy_low"], 100 * row["accuracy_high"]]
        axes.plot([cost_of(row)] * 2, ends, color=COLOURS[0], alpha=0.3, linewidth=1.5)
        if cost_of(row) * CLOSE <= named:
            named = cost_of(row)
            place = named, percent(row)
            axes.annotate(row["setting"], place, (-6, 3), textcoords="offset points", ha="right", size=6.5)
    top = max(map(percent, [*singles, *rows]))
    axes.set_ylim(max(axes.get_ylim()[0], top - TALLEST), top + 1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("GFLOPs per image")
    axes.set_ylabel(f"accuracy on {ensembles['measured_on']} images, %; bars: 95 %")
    axes.set_title("Lines: what the other images choose at that cost", size=8, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    save_figure(figure, path)


def choose_by_cost(rows: Sequence[dict]) -> Iterator[dict]:
    """Rows in the order of their cost, of which each is chosen over all that are cheaper."""
    best = -1.0
    for row in sorted(rows, key=cost_of):
        if row["chosen_accuracy"] > best:
            best = row["chosen_accuracy"]
            yield row


def cost_of(row: Mapping[str, Any]) -> float:
    """GFLOPs of an image."""
    return row["gflops_per_image"]


def percent(row: Mapping[str, Any]) -> float:
    """Accuracy in percent."""
    return 100 * row["accuracy"]
