"""What an evaluation shows: a table in the terminal, and a figure.

The first of the evaluators' values is the one by which settings are compared. The figure is named after it,
such as accuracy.png.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from packvit.common.display import Display
from packvit.common.plots import COLOURS, MARKERS, new_axes, save_figure
from packvit.evaluate.measures import classification, retrieval
from packvit.evaluate.measures.classification import ACCURACY
from packvit.evaluate.measures.retrieval import TO_IMAGE, TO_TEXT
from packvit.evaluate.plan.compare import pareto
from packvit.evaluate.setting import patch_name
from packvit.evaluate.sweep.cost import COSTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = ("-", "--", ":", "-.")  # one for each model
CLOSE = 0.4, 3.0  # labels: doublings of tokens, and points of accuracy
# What a row of results.json says besides the evaluators' values and what a setting costs.
FACTS = (
    "model",
    "setting",
    "set",
    "resolution",
    "patch_size",
    "stride",
    "tokens",
    "protocol",
    "images",
    "texts",
    "tokens_per_image",
    "gflops_per_image",
)
# Of a classifier's and of retrieval's values, those in a table; all of them are too much.
SHOWN = {ACCURACY, "nll", "ece", *(f"{way}{depth}" for way in (TO_TEXT, TO_IMAGE) for depth in (1, 10))}
DETAILS = {*classification.VALUES, *retrieval.VALUES} - SHOWN


def measured(row: dict[str, Any]) -> list[str]:
    """The names of the evaluators' values in a row of results.json."""
    return [name for name in row if name not in FACTS and name not in COSTS]


RECALL = re.compile(r"(image_to_text|text_to_image)_r(\d+)")


def words(name: str) -> str:
    """The name of a value as a person writes it, such as `recall@1, image to text`."""
    if found := RECALL.fullmatch(name):
        return f"recall@{found[2]}, {found[1].replace('_', ' ')}"
    return name.replace("_", " ")


def heading(name: str) -> str:
    """The name of a value above a column; one of several words that lines can part."""
    if found := RECALL.fullmatch(name):
        return f"{found[1].replace('_', ' ')} @{found[2]}"
    return name


def title(name: str) -> str:
    """The name of a value as a person writes it at the start of a line."""
    return words(name)[:1].upper() + words(name)[1:]


def show_results(rows: list[dict[str, Any]], display: Display) -> None:
    """A table of the evaluators' values by setting, and the best of the first of them.

    Args:
        rows: of results.json.
    """
    first, *others = measured(rows[0])
    others = [
        name
        for name in others
        if name not in DETAILS and any(isinstance(row.get(name), int | float) for row in rows)
    ]
    # Retrieval beside classification has a table of its own: one of both would be too wide.
    recalls = [name for name in others if RECALL.match(name) and not RECALL.match(first)]
    others = [name for name in others if name not in recalls]
    # A name is in the table where it tells rows apart.
    names = [name for name in ("model", "set") if len({row.get(name) for row in rows}) > 1]
    speeds = {"images_per_s": "images/s", "latency_ms_p50": "ms"}
    speeds = {name: words for name, words in speeds.items() if rows[0].get(name) is not None}
    own = [row for row in rows if row.get("set") == rows[0].get("set")]  # the main set's
    best = max(own, key=lambda row: known(row.get(first)))
    display.table(
        f"{title(first)} by setting; tokens and GFLOPs of an image" + (", ms of one alone" if speeds else ""),
        ["setting", *names, "tokens", "GFLOPs", *map(heading, (first, *others)), *speeds.values()],
        [
            [
                row["setting"],
                *(str(row[name]) for name in names),
                f"{row['tokens_per_image']:.1f}",
                f"{row['gflops_per_image']:.3f}",
                percent(row.get(first)) + (" *" if row is best else "  "),
                *(shown(row, name) for name in others),
                *(number(row.get(name), 1) for name in speeds),
            ]
            for row in rows
        ],
    )
    if recalls:
        display.table(
            "Retrieval by setting",
            ["setting", *names, *map(heading, recalls)],
            [
                [row["setting"], *(str(row[name]) for name in names), *(shown(row, name) for name in recalls)]
                for row in rows
            ],
        )
    where = " of ".join([best["setting"], *(str(best[name]) for name in names)])
    low, high = best.get(f"{first}_low"), best.get(f"{first}_high")
    interval = f" ({percent(low)} to {percent(high)} at 95 % confidence)" if low is not None else ""
    display.say(f"Best (*): {percent(best[first])}{interval} at {where}")
    for tokens in sorted({row["tokens"] for row in rows if row["tokens"]}):
        within = [row for row in rows if row["tokens"] == tokens and row["set"] == rows[0]["set"]]
        best = max(within, key=lambda row: known(row[first]))
        display.say(f"At most {tokens} tokens: {percent(best[first])} at {best['setting']}")


def shown(row: dict[str, Any], name: str) -> str:
    """A value in a table; a dash where the row has none."""
    return percent(row.get(name)) if RECALL.match(name) else number(row.get(name), 3)


def show_corruptions(summaries: Sequence[dict[str, Any]], measure: str, display: Display) -> None:
    """A line for each kind of corruption, with the mean of the measure at each setting.

    Args:
        summaries: see `packvit.evaluate.measures.robustness.summarise_corruptions`.
    """
    if not summaries:
        return
    settings = [" ".join(filter(None, (one.get("model"), one["setting"]))) for one in summaries]
    lines = [
        ["none", *(percent(one["clean"]) for one in summaries)],
        *([kind, *(percent(one["kinds"][kind]) for one in summaries)] for kind in summaries[0]["kinds"]),
        ["mean of the kinds", *(percent(one["corrupted"]) for one in summaries)],
    ]
    display.table(f"{title(measure)} under corruption", ["corruption", *settings], lines)


def known(value: float | None) -> float:
    """A value to compare with others; the unknown is below all."""
    return -math.inf if value is None or math.isnan(value) else value


def percent(value: float | None) -> str:
    """A share with one decimal."""
    return "-" if value is None else f"{value:.1%}"


def number(value: float | None, decimals: int) -> str:
    """A number with so many decimals."""
    return "-" if value is None else f"{value:.{decimals}f}"


def patches_of(row: Mapping[str, Any]) -> tuple[int, int]:
    """A row's patch size, and the pixels from one patch to the next."""
    return row["patch_size"], row.get("stride") or row["patch_size"]


def describe_patches(patches: tuple[int, int]) -> str:
    """What `patches_of` gives, such as `patch size 16`, or `patch size 16 every 8`."""
    size, stride = patches
    return f"patch size {size}" + (f" every {stride}" if stride < size else "")


def draw_results(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The first of the evaluators' values against tokens per image, one line per patch size of each model.

    The Pareto front of each model is drawn and labelled: the settings that no cheaper one equals. With a
    single model a second axis shows GFLOPs.

    Args:
        rows: of results.json; those of the first set are drawn.
        path: PNG; its folder is created if needed.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = new_axes(8, 5.4)
    name = measured(rows[0])[0]
    rows = [row for row in rows if row.get("set") == rows[0].get("set") and row[name] is not None]
    models = list(dict.fromkeys(row.get("model", "") for row in rows))
    sizes = sorted({patches_of(row) for row in rows})
    for own, model in enumerate(models):
        mine = sorted((row for row in rows if row.get("model", "") == model), key=_tokens)
        for place, p in enumerate(sizes):
            line = [row for row in mine if patches_of(row) == p]
            axes.plot(
                [_tokens(row) for row in line],
                [100 * row[name] for row in line],
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
                linestyle=LINES[own % len(LINES)],
                linewidth=1,
                label=f"{model}, {describe_patches(p)}" if model else describe_patches(p),
            )
        _draw_front(axes, mine, name, own == 0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("tokens per image (mean)")
    axes.set_ylabel(f"{words(name)}, %")
    axes.margins(x=0.12, y=0.1)
    if len(models) == 1:
        _add_gflops(axes, rows)
    figure.suptitle(f"{title(name)} at every budget (labels: resolution in pixels, patch size)", size=11)
    if rows:
        axes.legend(fontsize=9, loc="lower right")
    save_figure(figure, path)


def _tokens(row: dict[str, Any]) -> float:
    return row["tokens_per_image"]


def _draw_front(axes: "Axes", rows: Sequence[dict[str, Any]], name: str, first: bool) -> None:
    """The settings of a model that no cheaper one equals, as a broad line with labels."""
    front = [rows[place] for place in pareto([_tokens(row) for row in rows], [row[name] for row in rows])]
    axes.plot(
        [_tokens(row) for row in front],
        [100 * row[name] for row in front],
        color="#C8C8C8",
        linewidth=7,
        solid_capstyle="round",
        zorder=0.5,
        label="Pareto front" if first else None,
    )
    labelled = math.inf, math.inf
    for row in reversed(front):
        place = math.log2(_tokens(row)), 100 * row[name]
        if labelled[0] - place[0] < CLOSE[0] and labelled[1] - place[1] < CLOSE[1]:
            continue  # the label would lie on its neighbour's
        labelled = place
        axes.annotate(
            f"R{row['resolution']} {patch_name(row['patch_size'], row.get('stride'))}",
            (_tokens(row), 100 * row[name]),
            (-6, 5),  # the front rises, so what is above and to the left is free
            textcoords="offset points",
            ha="right",
            size=7.5,
        )


def _add_gflops(axes: "Axes", rows: Sequence[dict[str, Any]]) -> None:
    """An axis above: what these numbers of tokens cost, between the settings that were measured."""
    known = sorted((_tokens(row), row["gflops_per_image"]) for row in rows if row.get("gflops_per_image"))
    if len(known) < 2 or known[0][0] == known[-1][0]:
        return
    tokens, gflops = (np.log2([pair[place] for pair in known]) for place in (0, 1))
    ticks = 2.0 ** np.arange(math.ceil(tokens[0] - 0.1), tokens[-1] + 0.1)
    above = axes.twiny()
    above.set_xscale("log", base=2)
    above.set_xlim(axes.get_xlim())
    above.minorticks_off()
    above.set_xticks(ticks, [f"{2 ** np.interp(tick, tokens, gflops):.2g}" for tick in np.log2(ticks)])
    above.set_xlabel("GFLOPs per image (approximate)")
    for side in ("top", "right"):
        above.spines[side].set_visible(False)
