"""How a batch shows itself: in a line of text, and in a notebook as a small picture of its sequences."""

from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from packvit.packing.batch.image import Shape

MOST_SEQUENCES = 16  # of a picture
BAR, GAP = 18, 4  # heights in pixels
TURN = 137.508  # degrees between the hues of images one after the other: the golden angle
PADDING = "#8884"  # grey on a light page and on a dark one
PackedBatch = Any  # its module imports this one


def describe(batch: PackedBatch) -> str:
    """Its counts, patch sizes and place in one line; waits for no device."""
    stats = batch.stats()
    sizes = ", ".join(map(size_name, batch.patches)) or "none"
    shares = f"{stats.padding_fraction:.1%} padding"
    targets = f", targets {', '.join(batch.targets)}" if batch.targets else ""
    return (
        f"{counted(stats.images, 'image')}, {counted(stats.tokens, 'token')} in "
        f"{counted(stats.sequences, 'sequence')} of {batch.seq_len} slots ({shares}), patch sizes {sizes}"
        f"{targets}, uint8 on {batch.image_index.device}"
    )


def draw(batch: PackedBatch) -> str:
    """The line and its first sequences as HTML with an SVG inside, which needs nothing from elsewhere.

    Every sequence is a bar, every image in it a block as long as its tokens; a block says under the pointer
    which image it is. Padding is grey. On a GPU it waits for the device.
    """
    rows = batch.image_index.numpy(force=True).reshape(-1, batch.seq_len)
    grids, cells = batch.grids.tolist(), batch.cells.tolist()
    blocks, places = [], {}
    for row, owners in enumerate(rows[:MOST_SEQUENCES]):
        top = row * (BAR + GAP)
        blocks.append(f'<rect y="{top}" width="{batch.seq_len}" height="{BAR}" fill="{PADDING}"/>')
        edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), batch.seq_len]
        for start, end in pairwise(edges):
            if (image := int(owners[start])) >= 0:
                grid = "x".join(map(str, grids[image]))
                about = f"{name(batch, image)}: {grid} patches of {size_name(cells[image])}"
                hue = places.setdefault(image, len(places)) * TURN % 360
                blocks.append(
                    f'<rect x="{start}" y="{top}" width="{end - start}" height="{BAR}" '
                    f'fill="hsl({hue:.0f} 60% 60%)"><title>{escape(about)} pixels, '
                    f"{counted(end - start, 'token')}</title></rect>"
                )
    shown = min(len(rows), MOST_SEQUENCES)
    height = max(1, shown * (BAR + GAP) - GAP)
    more = f"<div>The first {shown} of {len(rows)} sequences.</div>" if len(rows) > shown else ""
    return (
        f"<div><div>PackedBatch: {escape(describe(batch))}</div>"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(1, batch.seq_len)} {height}" '
        f'preserveAspectRatio="none" style="width:100%;max-width:60em;height:{height}px">'
        f"{''.join(blocks)}</svg>{more}</div>"
    )


def name(batch: PackedBatch, image: int) -> str:
    """An image by its number, and by its key where that says more."""
    key = batch.keys[image] if image < len(batch.keys) else ""
    return f"image {image}" if key in ("", str(image)) else f"image {image}, {key}"


def size_name(shape: Shape) -> str:
    """16 for a square of 16, else 2x16x16."""
    return str(shape[0]) if len(set(shape)) == 1 and len(shape) == 2 else "x".join(map(str, shape))


def counted(number: int, what: str) -> str:
    """Such as 1 image, 2 images."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
