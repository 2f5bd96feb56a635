"""Figures: colours, markers, a new figure and its file.

matplotlib is optional: `new_figure` raises an ImportError with one sentence if it is missing. Figures are
made without pyplot, so nothing depends on a display or on global state.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from packvit.common.optional import need

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = "osD^vPX*"
PADDING = "#B0B0B0"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches.

    Raises:
        ImportError: matplotlib is not installed; says how to install it.
    """
    figures = need("matplotlib.figure", "plot", "plots need matplotlib")
    return figures.Figure(figsize=(width, height), layout="constrained")


def new_axes(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure of one plot with a light grid and no frame above and to the right; raises like
    `new_figure`."""
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG; its folder is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
