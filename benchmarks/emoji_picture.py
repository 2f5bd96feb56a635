"""The picture of what is retrieved: a line for each query, then the five that are most like it."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from packvit.common.plots import COLOURS, PADDING, new_figure, save_figure

HIT, MISS = COLOURS[2], PADDING
# Inches: of a cell, between cells, of a picture, of a line of text and of the strip with the bar.
WIDTH, GAP, SIDE, LINE, BAR = 1.62, 0.08, 0.5, 0.13, 0.15
SIGNS, LINES = 25, 2  # in a cell


class Entry(NamedTuple):
    """A caption or a picture's name, in words; the picture, where it may be shown; cosine and hit of an
    answer."""

    words: str
    picture: np.ndarray | None = None
    cosine: float = 0.0
    hit: bool = False


class Answers(NamedTuple):
    """A query and the entries that are most like it, in their order."""

    query: Entry
    best: Sequence[Entry]


def draw(parts: Mapping[str, Sequence[Answers]], path: Path) -> None:
    """Write a PNG with a titled part for each kind of query.

    A cell has the words and below them a bar as long as the cosine; hits are green. Pictures stand above the
    words.
    """
    shown = any(entry.picture is not None for part in parts.values() for row in part for entry in row.best)
    height = LINES * LINE + BAR + 0.02 + (SIDE + 0.08 if shown else 0)
    columns = 1 + max(len(row.best) for part in parts.values() for row in part)
    width = columns * (WIDTH + GAP) + GAP
    total = sum(0.42 + len(part) * (height + GAP) for part in parts.values())
    figure = new_figure(width, total)
    axes = figure.add_subplot()
    axes.set_axis_off()
    top = 0.0
    for title, part in parts.items():
        axes.text(GAP, top + 0.26, title, fontsize=10, weight="bold", va="center")
        top += 0.42
        for row in part:
            draw_cell(axes, GAP, top, height, row.query, query=True)
            for place, entry in enumerate(row.best):
                draw_cell(axes, GAP + (place + 1) * (WIDTH + GAP), top, height, entry)
            top += height + GAP
    axes.set_xlim(0, width)
    axes.set_ylim(total, 0)
    axes.set_aspect("equal")
    save_figure(figure, path)


def draw_cell(axes: Axes, left: float, top: float, height: float, entry: Entry, query: bool = False) -> None:
    """One entry with its upper left corner at (left, top), in inches; a query has no bar."""
    colour = "black" if query else HIT if entry.hit else MISS
    frame = {"facecolor": "none", "edgecolor": colour, "linewidth": 1.6 if entry.hit else 0.8}
    if not query:
        axes.add_patch(Rectangle((left, top), WIDTH, height, **frame))
    middle = left + WIDTH / 2
    words_top, words_bottom = top, top + height - (0 if query else BAR)
    if entry.picture is not None:
        words_top = top + 0.04 + SIDE
        axes.imshow(entry.picture, extent=(middle - SIDE / 2, middle + SIDE / 2, words_top, top + 0.04))
    lines = textwrap.wrap(entry.words, SIGNS, max_lines=LINES, placeholder=" …")
    weight, y = "bold" if query else "normal", (words_top + words_bottom) / 2
    axes.text(middle, y, "\n".join(lines), fontsize=7, ha="center", va="center", weight=weight)
    if not query:
        y = top + height - BAR / 2
        length = (WIDTH - 0.4) * max(0.0, entry.cosine)
        axes.add_patch(Rectangle((left + 0.06, y - 0.025), length, 0.05, color=colour, linewidth=0))
        axes.text(left + WIDTH - 0.06, y, f"{entry.cosine:.2f}", fontsize=6, ha="right", va="center")
