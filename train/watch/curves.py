"""Pictures of a run's course, from the lines of metrics.jsonl; see packvit.train.watch.samples and
packvit.evaluate for the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from packvit.common.plots import COLOURS, new_figure, save_figure
from packvit.evaluate import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[dict[str, Any]]
SMOOTHED = 20  # points that a smoothed curve shows apart
TENTH = 10
FLAT = 0.01  # shares that need no panel


def draw_loss(lines: Lines, path: Path) -> None:
    """Loss over the images seen: of all images, and by patch size and by resolution.

    Args:
        lines: of metrics.jsonl.
        path: PNG; its folder is created if needed.
    """
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    highest = 0.0
    for axes, field, title, unit in (
        (left, "loss_by_patch_size", "Loss by patch size", "p = "),
        (right, "loss_by_resolution", "Loss by resolution, in pixels", ""),
    ):
        groups = group_names(lines, field)
        for name, colour in zip(groups, ordered_colours(len(groups)), strict=True):
            x, y = series(lines, field, name)
            axes.plot(x, smooth(y), color=colour, linewidth=1.4, label=unit + name)
            highest = max(highest, *smooth(y))
        x, y = series(lines, "loss")
        axes.plot(x, y, color="black", linewidth=0.5, alpha=0.3)
        axes.plot(x, smooth(y), color="black", linewidth=2, linestyle=(0, (4, 1.5)), label="all")
        axes.set_title(title)
        _finish(axes)
    left.set_ylabel("loss, mean over images")
    if highest:
        left.set_ylim(top=1.05 * highest)  # a single wild step would hide all others
    if smooth(y) is not y:
        figure.suptitle("Smoothed; thin grey: as logged", size=9)
    save_figure(figure, path)


def draw_drop(lines: Lines, path: Path) -> None:
    """Drop rate over the images seen, and by resolution at the start and at the end of the run.

    Args:
        lines: of metrics.jsonl.
        path: PNG; its folder is created if needed.
    """
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    x, y = series(lines, "drop_rate")
    left.plot(x, 100 * y, color=COLOURS[0], linewidth=0.6, alpha=0.4)
    left.plot(x, 100 * smooth(y), color=COLOURS[0], linewidth=2)
    left.set_title("Dropped tokens, mean over images")
    left.set_ylabel("drop rate, %")
    _finish(left, legend=False)
    groups = group_names(lines, "drop_rate_by_resolution")
    part = max(1, len(lines) // TENTH)
    for place, colour, label, some in (
        (-0.2, COLOURS[5], "first tenth of the run", lines[:part]),
        (0.2, COLOURS[0], "last tenth of the run", lines[-part:]),
    ):
        known = [series(some, "drop_rate_by_resolution", name)[1] for name in groups]
        rates = [100 * values.mean() if len(values) else 0 for values in known]
        right.bar(np.arange(len(groups)) + place, rates, 0.38, color=colour, label=label)
    right.set_xticks(range(len(groups)), groups, rotation=30)
    right.set_title("By resolution")
    right.set_xlabel("resolution of the view, pixels")
    right.set_ylim(0, 1.25 * max([*rates, *100 * y]))  # room for the legend
    right.grid(alpha=0.3, axis="y")
    right.legend(fontsize=8)
    save_figure(figure, path)


def draw_curves(lines: Lines, path: Path) -> None:
    """Learning rate, gradient, speed and validation over the steps, one below the other.

    Padding and waits for data have a panel if they exceed one percent; less is not worth attention.

    Args:
        lines: of metrics.jsonl.
        path: PNG; its folder is created if needed.
    """
    panels = [("lr", "learning rate", 1), ("grad_norm", "gradient norm", 1), ("images_per_s", "images/s", 1)]
    for name, title in (("padding_fraction", "padding, %"), ("data_wait_fraction", "data wait, %")):
        if any((line.get(name) or 0) > FLAT for line in lines):
            panels.append((name, title, 100))
    measure, validated = validation(lines)
    count = len(panels) + bool(validated)
    figure = new_figure(8, 1.2 + 1.7 * count)
    drawn = []
    for number, (name, title, factor) in enumerate(panels):
        axes = figure.add_subplot(count, 1, number + 1, sharex=drawn[0] if drawn else None)
        x, y = series(lines, name, over="step")
        axes.plot(x, factor * y, color=COLOURS[0], linewidth=1)
        axes.set_ylabel(title)
        if name == "grad_norm" and len(y) and y.min() > 0 and y.max() > 10 * y.min():
            axes.set_yscale("log")
            axes.minorticks_off()
        else:
            axes.set_ylim(0, 1.1 * max(1e-12, *(factor * y), 0))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        drawn.append(axes)
    if validated:
        axes = figure.add_subplot(count, 1, count, sharex=drawn[0])
        steps, values = zip(*validated, strict=True)
        axes.plot(steps, [100 * value for value in values], color=COLOURS[1], marker="o", markersize=3)
        axes.set_ylabel(f"validation:\n{words(measure)}, %")
        drawn.append(axes)
    for axes in drawn:
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=axes is drawn[-1])
    drawn[-1].set_xlabel("step")
    save_figure(figure, path)


def validation(lines: Lines) -> tuple[str, list[tuple[int, float]]]:
    """The values of validations during training by name, as (step, value); empty if there are none."""
    for name in (name for line in lines for name in line.get("validation") or {}):
        found = [(line["step"], (line.get("validation") or {}).get(name)) for line in lines]
        return name, [(step, value) for step, value in found if isinstance(value, int | float)]
    return "", []


def draw_history(lines: Lines, folder: Path) -> None:
    """Draw loss.png and curves.png into `folder`, and drop.png if tokens were dropped."""
    drawings = {"loss.png": draw_loss, "curves.png": draw_curves}
    if any(line.get("drop_rate") for line in lines):
        drawings["drop.png"] = draw_drop
    for name, draw in drawings.items():
        draw(lines, folder / name)


def series(
    lines: Lines, field: str, group: str | None = None, over: str = "images_seen"
) -> tuple[np.ndarray, np.ndarray]:
    """The known values of a field, or of one of its groups, and their places: float64 [n], [n]."""
    values = [line.get(field) for line in lines]
    if group is not None:
        values = [(value or {}).get(group) for value in values]
    known = [(line[over], value) for line, value in zip(lines, values, strict=True) if value is not None]
    return np.array([x for x, _ in known], float), np.array([y for _, y in known], float)


def group_names(lines: Lines, field: str) -> list[str]:
    """The groups of a field in any line, by their first number."""
    return sorted(
        {name for line in lines for name in line.get(field) or {}}, key=lambda n: int(n.split("-")[0])
    )


def smooth(y: np.ndarray) -> np.ndarray:
    """Centred moving means; at the ends, over the available values."""
    kernel = np.ones(min(len(y), 2 * (len(y) // SMOOTHED // 2) + 1))
    if len(kernel) < 2:
        return y
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")


def ordered_colours(number: int) -> list[Any]:
    """Colours from dark to light, for groups that have an order."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * i / max(1, number - 1)) for i in range(number)]


def _finish(axes: "Axes", legend: bool = True) -> None:
    axes.set_xlabel("images seen")
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=8, ncols=2)


def short_number(value: float) -> str:
    """12300 as 12.3k, and so on to billions."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
