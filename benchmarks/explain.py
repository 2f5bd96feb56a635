"""The pictures of README.md and of docs/pi-resize.md, positions.md and resume.md, made by the library itself.

    python benchmarks/explain.py

Writes docs/images/samples.png, pi-resize.png, positions.png and resume.png in seconds. samples.png shows one
sequence of the demo's digits; scikit-learn has their scans.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from packvit.common.plots import COLOURS, MARKERS, new_figure, save_figure
from packvit.data import ClassTarget, DataConfig, DataPlan, TrainLoader, read_class_names, write_digits
from packvit.models.position.embedding import Places, PosCoords, centres
from packvit.models.resample import pi_resize
from packvit.packing import DropConfig, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.watch.samples import draw_samples

IMAGES = Path(__file__).parent.parent / "docs/images"
BUFFER = 32  # pixels of the stored patch embedding
SHOWN = (8, 12, 16, 24, 32)
OPERATORS = ("bilinear", "bilinear_antialias", "bicubic_antialias", "natural", "plain_bilinear_antialias")
TABLE = (16, 16)  # entries of the position tables
STREAMS, BATCHES = 4, 12
SLOTS, SEED = 640, 7


def main() -> None:
    """Draw the three pictures."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    draw_pi_resize(IMAGES / "pi-resize.png")
    draw_positions(IMAGES / "positions.png")
    draw_resume(IMAGES / "resume.png")
    draw_sequence(IMAGES / "samples.png")
    print(f"wrote samples.png, pi-resize.png, positions.png and resume.png to {IMAGES}")


def draw_sequence(path: Path) -> None:
    """One packed sequence of digits on canvases of many shapes, with all that varies between its images."""
    views = ViewsConfig(
        (6, 8, 12, 16),
        (1, 2, 4, 2),
        resolution=ResolutionConfig(48, 96, "uniform"),
        drop=DropConfig("beta", mean=0.2, maximum=0.75),
    )
    packing = PackingConfig(seq_len=SLOTS, sequences=1, lookahead=64, balance=1)
    with TemporaryDirectory() as folder:
        write_digits(Path(folder), 200, 10, seed=SEED)
        data = DataConfig((f"{folder}/train",), streams=1, workers=0)
        plan = DataPlan(data, views, packing, seed=SEED, targets={"label": ClassTarget()})
        loaded = next(iter(TrainLoader(plan)))
        draw_samples(loaded.batch, path, 1, read_class_names(Path(folder, "train")))


def a_filter() -> torch.Tensor:
    """A filter as patch embeddings learn them, float64 [BUFFER, BUFFER, 1, 1]: waves under a bell."""
    line = torch.linspace(-1, 1, BUFFER, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    waves = torch.cos(7 * (0.8 * x + 0.6 * y)) * torch.exp(-2.5 * (x * x + y * y))
    return waves[..., None, None]


def draw_pi_resize(path: Path) -> None:
    """Above: one stored filter at several patch sizes. Below: the response to a constant patch."""
    figure = new_figure(9, 5.6)
    grid = figure.add_gridspec(2, len(SHOWN), height_ratios=(1, 1.5))
    for place, p in enumerate(SHOWN):
        axes = figure.add_subplot(grid[0, place])
        pixels = pi_resize(a_filter(), (p, p), "bilinear_antialias")[..., 0, 0].numpy()
        reach = np.abs(pixels).max()
        axes.imshow(pixels, cmap="RdBu", vmin=-reach, vmax=reach)
        axes.set_title(f"p = {p}" + (", stored" if p == BUFFER else ""), size=10)
        axes.set_xticks([])
        axes.set_yticks([])
    axes = figure.add_subplot(grid[1, :])
    sizes = range(4, 49)
    constant = torch.ones(BUFFER, BUFFER, 1, 1, dtype=torch.float64)
    for operator, colour in zip(OPERATORS, COLOURS, strict=False):
        answers = [float(pi_resize(constant, (p, p), operator).sum() / constant.sum()) for p in sizes]
        axes.plot(sizes, answers, color=colour, label=operator)
    axes.axvline(BUFFER, color="grey", linewidth=0.8, linestyle=":")
    axes.annotate("stored size", (BUFFER, 2.05), xytext=(4, 0), textcoords="offset points", size=9)
    axes.set_ylim(0, 2.3)
    axes.set_xlabel("patch size p, pixels")
    axes.set_ylabel("response to a constant patch")
    finish(axes)
    axes.legend(frameon=False, fontsize=9, ncols=2)
    save_figure(figure, path)


def draw_positions(path: Path) -> None:
    """The coordinates of one line of patches of three images, in each of the three kinds."""
    shown = (("a square image, p = 16", 8, 8), ("the same, p = 32", 4, 4), ("twice as wide, p = 16", 8, 16))
    figure = new_figure(9, 3.1)
    for place, kind in enumerate(("absolute", "fractional", "fractional_aspect"), 1):
        axes = figure.add_subplot(1, 3, place)
        for row, (name, rows, cols) in enumerate(shown):
            x, y = coordinates(kind, rows, cols)
            axes.plot(x, np.full(len(x), 2 * row), MARKERS[0], color=COLOURS[row], markersize=4)
            axes.plot(y, np.full(len(y), 2 * row - 0.6), MARKERS[1], color=COLOURS[row], markersize=3)
            axes.text(-0.5, 2 * row + 0.35, name, size=8, color=COLOURS[row])
        axes.set_title(kind, size=10)
        axes.set_xlim(-0.9, 16)
        axes.set_ylim(-1.2, 5.2)
        axes.set_yticks([])
        axes.set_xlabel("place in the table of 16 entries")
        finish(axes)
        axes.spines["left"].set_visible(False)
    save_figure(figure, path)


def coordinates(kind: PosCoords, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Along x of the first row of patches, and along y of the first column."""
    coords = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
    sizes = torch.tensor([[rows, cols]]).expand(rows * cols, 2)
    found = centres(Places(coords, torch.ones_like(coords), sizes), kind, TABLE, torch.float64)
    return found[:cols, 1].numpy(), found[::cols, 0].numpy()


def draw_resume(path: Path) -> None:
    """Which rank takes which batch in which step, for three numbers of ranks."""
    figure = new_figure(9, 3.3)
    axes = figure.add_subplot()
    for batch in range(BATCHES):
        axes.text(batch + 0.5, 4.25, f"{batch}", ha="center", size=9)
        axes.text(batch + 0.5, 3.55, f"s{batch % STREAMS}", ha="center", size=9, color="grey")
    for row, ranks in enumerate((1, 2, 4)):
        for batch in range(BATCHES):
            rank, bottom = batch % ranks, 2.4 - row * 1.1
            axes.add_patch(Rectangle((batch + 0.04, bottom), 0.92, 0.8, color=COLOURS[rank], alpha=0.75))
            axes.text(
                batch + 0.5, bottom + 0.4, f"rank {rank}", ha="center", va="center", size=8, color="white"
            )
        for step in range(0, BATCHES + 1, ranks):
            axes.plot((step, step), (2.3 - row * 1.1, 3.3 - row * 1.1), color="black", linewidth=1.2)
        axes.text(-0.15, 2.8 - row * 1.1, f"{ranks} rank{'s' * (ranks > 1)}", ha="right", va="center", size=9)
    axes.text(-0.15, 4.25, "batch", ha="right", size=9)
    axes.text(-0.15, 3.55, "its stream", ha="right", size=9, color="grey")
    axes.set_xlim(-1.4, BATCHES + 0.1)
    axes.set_ylim(0, 4.7)
    axes.axis("off")
    save_figure(figure, path)


def finish(axes: Axes) -> None:
    """A light grid and no frame above and to the right."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
