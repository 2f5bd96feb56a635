"""A picture of packed sequences: every image with its patches in place, and how the slots are shared."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from packvit.common.plots import COLOURS, PADDING, new_figure, save_figure
from packvit.packing import PackedBatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ACROSS = 12  # images side by side
MAX_IMAGES = 3 * MAX_ACROSS  # of a sequence: the layout takes minutes for some hundreds
LONGEST_NAME = 18  # characters of a class that are shown
TITLE_WIDTH = 8  # inches that the longest line of a title takes


def draw_samples(
    batch: PackedBatch, path: Path, max_sequences: int = 4, classes: Sequence[str] | None = None
) -> None:
    """The first packed sequences: images with their patches in place, and how the slots are shared.

    A sequence is a band of two parts. The upper part has its first MAX_IMAGES images, each with its kept
    patches in place and dropped ones crossed out, and with patch size, kept tokens and label below it. The
    lower part is a bar of the S slots, coloured by image, with padding in grey.

    Args:
        batch: uint8 patches, on the CPU.
        path: PNG; its folder is created if needed.
        max_sequences: maximum number of sequences shown.
        classes: names of the labels; None shows their numbers.
    """
    rows = batch.image_index.reshape(-1, batch.seq_len)[:max_sequences]
    sequences = [[int(i) for i in row.unique() if i >= 0] for row in rows]
    lengths = batch.image_lengths().tolist()
    across = min(MAX_ACROSS, max(map(len, sequences), default=1))
    bands = [max(1, -(-min(len(images), MAX_IMAGES) // across)) for images in sequences]
    figure = new_figure(max(1.15 * across + 0.6, TITLE_WIDTH), 1.75 * sum(bands) + 0.5 * len(bands) + 0.9)
    heights = [height for band in bands for height in (*[1.75] * band, 0.5)]
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    line = 0
    for row, (images, band) in enumerate(zip(sequences, bands, strict=True)):
        shown = images[:MAX_IMAGES]
        across = -(-len(shown) // band) or 1
        for place, image in enumerate(shown):
            first = place - place % across  # of this line, whose images share the whole width
            cells = grid[line + place // across].subgridspec(1, min(across, len(shown) - first), wspace=0.12)
            axes = figure.add_subplot(cells[place - first])
            colour = COLOURS[place % (len(COLOURS) - 1)]
            _draw_image(axes, batch, image, _words(batch, image, lengths[image], classes), colour)
        line += band
        _draw_slots(figure.add_subplot(grid[line]), rows[row].numpy(), images, row)
        line += 1
    figure.suptitle(
        "Packed sequences: each image has its own size, patch size p and dropped patches (crossed out).\n"
        "The bar under the images shows which slots of the sequence they fill; grey is padding.",
        size=10,
    )
    save_figure(figure, path)


def _words(batch: PackedBatch, image: int, length: int, classes: Sequence[str] | None) -> str:
    """Class, patch size and tokens; of an image with several labels their number."""
    whole = math.prod(batch.token_grids.get(image) or batch.grids[image].tolist())
    tokens = f"p={int(batch.patch_sizes[image])}, {length}/{whole} tokens"
    if batch.labels is None:
        return tokens
    own = batch.labels[image]
    if own.ndim:
        return f"{int(own.count_nonzero())} labels\n{tokens}"
    if classes is None or int(own) >= len(classes):
        return f"label {int(own)}\n{tokens}"
    return f"{classes[int(own)][:LONGEST_NAME]}\n{tokens}"


def _draw_image(axes: "Axes", batch: PackedBatch, image: int, text: str, colour: str) -> None:
    rows, cols = batch.grids[image].tolist()
    height, width = batch.cells[image].tolist()
    # Dropped patches stay light, and a cross tells them from a white patch.
    picture = np.full((rows * height, cols * width, 3), 235, np.uint8)
    kept = np.zeros((rows, cols), bool)
    tops, lefts, sides = [], [], []  # of the kept patches, in pixels
    for shape, slots in batch.slots.items():
        mine = batch.image_index[slots] == image
        for (row, col), (high, wide), patch in zip(
            batch.coords[slots[mine]].tolist(),
            batch.extents[slots[mine]].tolist(),
            batch.patches[shape][mine].numpy(),
            strict=True,
        ):
            top, left = row * height, col * width
            picture[top : top + shape[0], left : left + shape[1]] = patch.reshape(*shape, 3)
            kept[row : row + high, col : col + wide] = True
            tops.append(top)
            lefts.append(left)
            sides.append(shape)
    axes.imshow(picture, interpolation="nearest")
    for row, col in np.argwhere(~kept):
        left, top = col * width - 0.5, row * height - 0.5
        axes.plot([left, left + width], [top, top + height], color="#909090", linewidth=0.5)
    top, left, side = np.array(tops) - 0.5, np.array(lefts) - 0.5, np.array(sides)
    axes.hlines(top, left, left + side[:, 1], color="white", linewidth=0.4, alpha=0.7)
    axes.vlines(left, top, top + side[:, 0], color="white", linewidth=0.4, alpha=0.7)
    axes.set_xlim(-0.5, cols * width - 0.5)
    axes.set_ylim(rows * height - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2)
    axes.set_xlabel(text, size=7, labelpad=3)


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
    some = f", {MAX_IMAGES} of them shown" if len(images) > MAX_IMAGES else ""
    axes.set_title(
        f"sequence {number}: {len(row)} slots, {len(images)} images{some}, {padding / len(row):.1%} padding",
        size=8,
        loc="left",
        pad=2,
    )
