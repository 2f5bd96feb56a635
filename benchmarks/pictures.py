"""Pictures of accuracies over patch sizes or resolutions, with the spread of the seeds."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from packvit.common.plots import COLOURS, MARKERS, new_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = dict[str, list[list[float]]]  # by label: for each place on the axis, the values of all seeds


def draw_line(
    axes: "Axes",
    places: Sequence[int],
    values: Sequence[Sequence[float]],
    label: str,
    number: int,
    style: str = "-",
) -> None:
    """The mean of the seeds at each place, with a bar from the lowest to the highest.

    Args:
        values: for each place, those of all seeds.
        number: of the line, for its colour and marker.
    """
    middle = [mean(each) for each in values]
    reach = [
        [m - min(each) for m, each in zip(middle, values, strict=True)],
        [max(each) - m for m, each in zip(middle, values, strict=True)],
    ]
    axes.errorbar(
        *(places, middle, reach, None),
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=style,
        markersize=4,
        capsize=2,
        label=label,
    )


def dress(axes: "Axes", places: Sequence[int], what: str) -> None:
    """Ticks, the names of both axes, a light grid and no frame above and to the right."""
    axes.set_xticks(places)
    axes.set_xlabel(f"{what}, pixels")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_picture(
    path: Path, places: Sequence[int], what: str, lines: Lines, thin: Lines | None = None
) -> None:
    """One plot of several lines, with the legend beside it.

    Args:
        what: name of the horizontal axis.
        thin: lines behind the others, as a background: grey, and their means alone.
    """
    figure, axes = new_axes(7.4, 3.6)
    for number, (label, values) in enumerate(lines.items()):
        # Beyond the last colour, lines are dashed.
        draw_line(axes, places, values, label, number, "-" if number < len(COLOURS) else "--")
    for number, (label, values) in enumerate((thin or {}).items()):
        style = ("-", "--", "-.", ":", (0, (1, 4)))[number % 5]
        axes.plot(
            places, [mean(v) for v in values], color="#909090", linestyle=style, linewidth=1, label=label
        )
    dress(axes, places, what)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3)
    save_figure(figure, path)
