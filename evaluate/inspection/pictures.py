"""Pictures of a model's attention and tokens for single images at every setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from packvit.common.optional import need
from packvit.common.plots import new_figure, save_figure
from packvit.evaluate.inspection.attention import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN = 1.2  # inches of a picture's width
FLATTEST, TALLEST = 0.4, 1.5  # of a picture's height to its width: one panorama does not shrink all others
LARGEST = 256  # pixels of an image's longer side in a figure
DARKEST = 0.7  # brightness of a map where the image below is black
PALETTE = 256  # colours of a file, which is a third as large as with all of them


@dataclass(frozen=True)
class Looked:
    """One image with the model's attention and tokens.

    Args:
        key: its name.
        pixels: uint8 [H, W, 3].
        looks: one for each setting.
    """

    key: str
    pixels: np.ndarray
    looks: Sequence[Look]


@dataclass(frozen=True)
class Row:
    """One line of a figure: an image, and a map of it at each setting.

    Args:
        title: text at its left.
        maps: map [rows, cols] at each setting.
        high: the value that is red; 0 and less are white.
        marked: whether the centre's patch is marked.
    """

    image: Looked
    title: str
    maps: Sequence[Tensor]
    high: float
    marked: bool = False


def draw_attention(images: Sequence[Looked], names: Sequence[str], title: str, path: Path) -> None:
    """Where the model looks, by setting: every patch's share of attention relative to an equal share.

    Args:
        names: names of the settings.
        title: which attention is shown.
        path: PNG; its folder is created if needed.
    """
    rows = []
    for image in images:
        maps = [look.attention * look.attention.numel() for look in image.looks]
        high = max(float(values.max()) for values in maps)
        rows.append(Row(image, f"0 to {high:.1f}", maps, high))
    title = f"{title.capitalize()}, as a multiple of an equal share:\nwhite to red is the range at the left"
    _draw(rows, names, title, path)


def draw_similarity(images: Sequence[Looked], names: Sequence[str], path: Path) -> None:
    """How similar the last layer's tokens are to the token at the image's centre, by setting.

    In an image's first row, that token is from the same setting; in the second row, it is always from the
    first setting. If the second row looks like the first, tokens mean the same at both settings.
    """
    rows = []
    for image in images:
        first = image.looks[0].centre_token()
        own = [look.similarity(look.centre_token()) for look in image.looks]
        across = [look.similarity(first) for look in image.looks]
        rows += [Row(image, "own", own, 1.0, True), Row(image, names[0], across, 1.0, True)]
    title = (
        "Cosine similarity to the token at the centre, from 0 or less (white) to 1 (red).\n"
        f"First row: to the setting's own token; second row: to that of {names[0]}"
    )
    _draw(rows, names, title, path)


def _draw(rows: Sequence[Row], names: Sequence[str], title: str, path: Path) -> None:
    heights = [
        COLUMN * float(np.clip(row.image.pixels.shape[0] / row.image.pixels.shape[1], FLATTEST, TALLEST))
        for row in rows
    ]
    figure = new_figure(max(5.0, COLUMN * (len(names) + 1) + 0.4), sum(heights) + 0.12 * len(rows) + 0.8)
    panels = figure.subplots(len(rows), len(names) + 1, squeeze=False, height_ratios=heights)
    before = None
    for line, row in zip(panels, rows, strict=True):
        image = Image.fromarray(row.image.pixels)
        image.thumbnail((LARGEST, LARGEST))
        if row.image is not before:
            line[0].imshow(image)
        before = row.image
        line[0].set_ylabel(row.title, size=7)
        for axes, values in zip(line[1:], row.maps, strict=True):
            _draw_map(axes, np.asarray(image.convert("L")), values.numpy(), row)
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
    for axes, name in zip(panels[0], ["image", *names], strict=True):
        axes.set_title(name, size=8)
    figure.suptitle(title, size=8.5)
    save_figure(figure, path)
    with Image.open(path) as file:
        few = file.convert("RGB").quantize(PALETTE, kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def _draw_map(axes: "Axes", grey: np.ndarray, values: np.ndarray, row: Row) -> None:
    """Colours are the map's, brightness within a patch is the image's."""
    colours = need("matplotlib", "plot", "plots need matplotlib").colormaps["OrRd"]
    height, width = grey.shape
    rows, cols = values.shape
    down, across = np.arange(height) * rows // height, np.arange(width) * cols // width
    shares = (values[down[:, None], across] / row.high).clip(0, 1)  # [height, width]
    light = DARKEST + (1 - DARKEST) * (grey / max(1, int(grey.max())))
    axes.imshow(colours(shares)[:, :, :3] * light[:, :, None])
    if row.marked:
        high, wide = height / rows, width / cols
        left, top = cols // 2 * wide - 0.5, rows // 2 * high - 0.5
        x, y = [left, left + wide, left + wide, left, left], [top, top, top + high, top + high, top]
        axes.plot(x, y, color="black", linewidth=1)
