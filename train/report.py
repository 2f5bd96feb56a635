"""Pictures of a run: packed sequences and accuracy by budget; packvit.train.curves has those of its course.

matplotlib is an optional dependency; every function raises ImportError with a sentence where it is missing.
Figures are made without pyplot, so nothing depends on a display or on global state.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from packvit.packing import PackedBatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = "osD^vPX*"
PADDING = "#B0B0B0"
MIN_ACROSS, MAX_ACROSS = 5, 12  # images side by side
TITLE_WIDTH = 8  # inches that the longest line of a title takes


def draw_accuracy(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Accuracy against tokens per image, one line per patch size.

    Args:
        rows: of eval/results.json.
        path: PNG; its folder is made.
    """
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    rows = list(rows)
    for number, p in enumerate(sorted({row["patch_size"] for row in rows})):
        line = sorted(
            (row for row in rows if row["patch_size"] == p), key=lambda row: row["tokens_per_image"]
        )
        axes.plot(
            [row["tokens_per_image"] for row in line],
            [100 * row["accuracy"] for row in line],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            label=f"patch size {p}",
        )
        for row in line:
            place = (row["tokens_per_image"], 100 * row["accuracy"])
            axes.annotate(
                f"{row['resolution']}", place, (0, 6), textcoords="offset points", ha="center", size=7
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("tokens per image (mean)")
    axes.set_ylabel("accuracy, %")
    axes.set_title("One checkpoint at every budget (numbers: resolution in pixels)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_samples(batch: PackedBatch, path: Path, max_sequences: int = 4) -> None:
    """The first packed sequences: every image with its patches in place, and how the slots are shared.

    A sequence is a band of two parts. Above stand its images, each with its kept patches where they belong,
    dropped ones crossed out, and under it patch size, kept tokens and label. Below is a bar of the S slots,
    coloured by image, padding in grey.

    Args:
        batch: uint8 patches, on the CPU.
        path: PNG; its folder is made.
        max_sequences: sequences shown.
    """
    rows = batch.image_index.reshape(-1, batch.seq_len)[:max_sequences]
    sequences = [[int(i) for i in row.unique() if i >= 0] for row in rows]
    lengths = batch.image_lengths().tolist()
    across = min(MAX_ACROSS, max(MIN_ACROSS, *map(len, sequences)))
    bands = [max(1, -(-len(images) // across)) for images in sequences]
    figure = new_figure(max(1.15 * across + 0.6, TITLE_WIDTH), 1.75 * sum(bands) + 0.5 * len(bands) + 0.9)
    heights = [height for band in bands for height in (*[1.75] * band, 0.5)]
    grid = figure.add_gridspec(len(heights), across, height_ratios=heights)
    line = 0
    for row, (images, band) in enumerate(zip(sequences, bands, strict=True)):
        for place, image in enumerate(images):
            axes = figure.add_subplot(grid[line + place // across, place % across])
            _draw_image(axes, batch, image, lengths[image], COLOURS[place % (len(COLOURS) - 1)])
        line += band
        _draw_slots(figure.add_subplot(grid[line, :]), rows[row].numpy(), images, row)
        line += 1
    figure.suptitle(
        "Packed sequences: each image has its own size, patch size p and dropped patches (crossed out).\n"
        "The bar under the images shows which slots of the sequence they fill; grey is padding.",
        size=10,
    )
    save_figure(figure, path)


def _draw_image(axes: "Axes", batch: PackedBatch, image: int, length: int, colour: str) -> None:
    rows, cols = batch.grids[image].tolist()
    p = int(batch.patch_sizes[image])
    slots = batch.slots[p]
    mine = batch.image_index[slots] == image
    coords = batch.coords[slots[mine]].numpy()
    # Dropped patches stay light, and a cross tells them from a white patch.
    picture = np.full((rows * p, cols * p, 3), 235, np.uint8)
    for (row, col), patch in zip(coords, batch.patches[p][mine].numpy(), strict=True):
        picture[row * p : (row + 1) * p, col * p : (col + 1) * p] = patch.reshape(p, p, 3)
    axes.imshow(picture, interpolation="nearest")
    kept = np.zeros((rows, cols), bool)
    kept[coords[:, 0], coords[:, 1]] = True
    for row, col in np.argwhere(~kept):
        left, top, right, bottom = col * p - 0.5, row * p - 0.5, (col + 1) * p - 0.5, (row + 1) * p - 0.5
        axes.plot([left, right], [top, bottom], color="#909090", linewidth=0.5)
    for row in range(1, rows):
        axes.axhline(row * p - 0.5, color="white", linewidth=0.4, alpha=0.7)
    for col in range(1, cols):
        axes.axvline(col * p - 0.5, color="white", linewidth=0.4, alpha=0.7)
    axes.set_xlim(-0.5, cols * p - 0.5)
    axes.set_ylim(rows * p - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2)
    label = ""
    if batch.labels is not None:
        # Of an image with several labels their number is shown.
        own = batch.labels[image]
        label = f", label {int(own)}" if own.ndim == 0 else f", {int(own.count_nonzero())} labels"
    axes.set_xlabel(f"p={p}{label}\n{length}/{rows * cols} tokens", size=6.5, labelpad=3)


def _draw_slots(axes: "Axes", row: np.ndarray, images: list[int], number: int) -> None:
    for place, image in enumerate(images):
        slots = np.flatnonzero(row == image)
        colour = COLOURS[place % (len(COLOURS) - 1)]
        axes.barh(0, len(slots), left=slots[0], color=colour, edgecolor="white", linewidth=0.8)
    padding = int((row < 0).sum())
    if padding:
        axes.barh(0, padding, left=len(row) - padding, color=PADDING, edgecolor="white", linewidth=0.8)
    axes.set_xlim(0, len(row))
    axes.set_yticks([])
    axes.tick_params(labelsize=6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(
        f"sequence {number}: {len(row)} slots, {len(images)} images, {padding / len(row):.1%} padding",
        size=8,
        loc="left",
        pad=2,
    )


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches.

    Raises:
        ImportError: matplotlib is not installed; says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'packvit[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
