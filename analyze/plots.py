"""Plots of a packing analysis; each function takes one sampler of analysis.json and returns a figure.

matplotlib is optional: every function raises ImportError with one sentence if it is missing.
"""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from packvit.common.plots import COLOURS, MARKERS, PADDING, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
SIZE = (6.2, 3.9)
FLOOR = 0.01  # percent; below it the axis of padding is linear, so that zero has a place


def draw_padding(sampler: dict[str, Any]) -> "Figure":
    """Padding by S, a line for each algorithm and lookahead."""
    figure, axes = new_axes(*SIZE)
    rows, choice = sampler["rows"], sampler["recommendation"]
    lookaheads = sorted({row["lookahead"] for row in rows})
    for number, algorithm in enumerate(dict.fromkeys(row["algorithm"] for row in rows)):
        for style, lookahead in enumerate(lookaheads):
            line = [row for row in rows if (row["algorithm"], row["lookahead"]) == (algorithm, lookahead)]
            line.sort(key=lambda row: row["seq_len"])
            axes.plot(
                [row["seq_len"] for row in line],
                [100 * row["padding_fraction"] for row in line],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=STYLES[style % len(STYLES)],
                label=algorithm if len(lookaheads) == 1 else f"{algorithm}, {lookahead}",
            )
    axes.plot(
        choice["seq_len"],
        100 * choice["padding_fraction"],
        marker="o",
        markersize=16,
        markerfacecolor="none",
        markeredgecolor="black",
        markeredgewidth=1.6,
    )
    axes.set_yscale("symlog", linthresh=FLOOR)
    axes.set_ylim(bottom=-FLOOR / 4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_ylabel("padding")
    _lengths_axis(axes, rows)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def draw_images(sampler: dict[str, Any]) -> "Figure":
    """Images in a sequence by S: mean and the range from p1 to p99."""
    figure, axes = new_axes(*SIZE)
    choice = sampler["recommendation"]
    same = ("algorithm", "lookahead")
    rows = [row for row in sampler["rows"] if all(row[key] == choice[key] for key in same)]
    rows.sort(key=lambda row: row["seq_len"])
    means = [row["images_per_sequence"] for row in rows]
    below = [max(0, row["images_per_sequence"] - row["images_per_sequence_p1"]) for row in rows]
    above = [max(0, row["images_per_sequence_p99"] - row["images_per_sequence"]) for row in rows]
    colours = [COLOURS[0] if row["seq_len"] == choice["seq_len"] else "#9CC4DE" for row in rows]
    axes.bar(range(len(rows)), means, color=colours, width=0.6)
    axes.errorbar(range(len(rows)), means, yerr=[below, above], fmt="none", ecolor="black", capsize=4)
    for place, mean in enumerate(means):
        axes.annotate(f"{mean:.1f}", (place, mean), (-5, 3), textcoords="offset points", ha="right", size=9)
    axes.set_xticks(range(len(rows)), [f"{row['seq_len']}" for row in rows])
    axes.set_xlabel("sequence length S")
    axes.set_ylabel("images in a sequence")
    return figure


def draw_histogram(sampler: dict[str, Any]) -> "Figure":
    """Views by their number of tokens; the last bar holds all longer ones."""
    figure, axes = new_axes(*SIZE)
    edges, counts = (sampler["tokens"]["histogram"][key] for key in ("edges", "counts"))
    shares = [100 * count / sum(counts) for count in counts]
    widths = [right - left for left, right in pairwise(edges)]
    axes.bar(edges[:-1], shares, width=widths, align="edge", color=COLOURS[0])
    wide = widths[-1] > 2 * widths[0]  # see `histogram`
    if wide:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    scale = math.log2 if wide else float
    mean = sampler["tokens"]["mean"]
    axes.axvline(mean, color=COLOURS[1])
    top = max(shares)
    axes.set_ylim(0, 1.3 * top)  # room for the labels
    axes.annotate(f" mean {mean:.0f}", (mean, 1.08 * top), color=COLOURS[1], va="top", size=9)
    labelled = -math.inf
    for seq_len in sorted({row["seq_len"] for row in sampler["rows"]}):
        if seq_len <= edges[-1]:
            axes.axvline(seq_len, color="black", linestyle="--", linewidth=1)
            # No label on top of another.
            if scale(seq_len) - labelled > 0.05 * (scale(edges[-1]) - scale(edges[0])):
                axes.annotate(f" S = {seq_len}", (seq_len, 1.28 * top), size=8, rotation=90, va="top")
                labelled = scale(seq_len)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_xlabel("tokens of a view")
    axes.set_ylabel("views")
    return figure


def draw_flops(sampler: dict[str, Any]) -> "Figure":
    """GFLOPs per image at the recommended S: packed, and with the other ways to make a batch."""
    figure, axes = new_axes(*SIZE)
    row = sampler["recommendation"]
    ways = {
        "no padding at all": "alone",
        "packed": "packed",
        "packed, dense\nattention": "dense",
        "sorted buckets": "sorted",
        "padded to the\nlongest in a batch": "longest",
    }
    for place, way in enumerate(ways.values()):
        total, attention = row[f"gflops_{way}"], row[f"attention_gflops_{way}"]
        colour = {"packed": COLOURS[0], "alone": PADDING}.get(way, "#9CC4DE")
        axes.barh(place, total - attention, color=colour, edgecolor="white")
        axes.barh(place, attention, left=total - attention, color=colour, edgecolor="white", hatch="////")
        ratio = total / row["gflops_packed"]
        axes.annotate(
            f"{total:,.0f}  ({ratio:.2f}x)" if total >= 100 else f"{total:.3g}  ({ratio:.2f}x)",
            (total, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            size=9,
        )
    axes.set_yticks(range(len(ways)), list(ways))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(row[f"gflops_{way}"] for way in ways.values()))
    axes.set_xlabel("GFLOP an image, forward")
    return figure


def _lengths_axis(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    lengths = sorted({row["seq_len"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length}" for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("sequence length S")
