"""The papers' claims as the papers compare: at equal images, at two lengths, on two sets of pictures.

`python benchmarks/equal_images.py` trains one model for each patch size and flexible models: one from
scratch, one that starts from the weights of a fixed model, and, on the digits, one that also learns from its
answers instead of labels. Each sees the same number of images in steps of as many images. It writes
benchmarks/results/equal_images.json, docs/images/equal-images.png and the tables of docs/replication.md.
The photographs come from Debian's package dataset-fashion-mnist, or from the folder that --fashion names.
The page is written after each seed; finished runs in --out are not repeated.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fashion import INSTALLED, write_fashion
from pictures import draw_line, dress
from replication import ROOT, TRAIN_IMAGES, Runs, draw_digits, machine, spread, train_once

from gpu.results import replace_section, save
from packvit.common.plots import new_figure, save_figure

PAGE, RESULTS = ROOT / "docs/replication.md", ROOT / "benchmarks/results/equal_images.json"
PICTURES = {"digits": "digits", "fashion": "Fashion-MNIST"}
PATCHES = (6, 8, 12, 16)
LENGTHS = (24_000, 96_000)  # images
RESOLUTIONS = (48, 64)  # of the test
TEST_IMAGES = 1000
TEACHER = 8  # patch size of the fixed model, trained for the longest time, that `from fixed` starts with
STEP = 64  # images
TAUGHT_AT = 64  # resolution at which the teacher sees the images of `distilled`
# Mean tokens of an image after dropping, counted in runs of each patch size.
TOKENS = {6: 46.8, 8: 26.1, 12: 11.6, 16: 6.5}
SEQUENCE = 256  # most slots
DISTILLED = "distilled"
# The flexible models of each set; a teacher's answers are tried on the digits alone.
FLEXIBLE = {"digits": ("flexible", "from fixed", DISTILLED), "fashion": ("flexible", "from fixed")}


def packing(patches: Sequence[int]) -> list[str]:
    """Flags for batches of about STEP images."""
    slots = STEP * sum(TOKENS[p] for p in patches) / len(patches)
    sequences = -(-round(slots) // SEQUENCE)
    return ["--packing.sequences", str(sequences), "--packing.seq-len", str(round(slots / sequences))]


def variants(runs: Path, pictures: str) -> dict[str, list[str]]:
    """Flags of every model of a set; `runs` is the folder of the seed's runs of the longest length."""
    own = ["--views.patch-sizes", *map(str, PATCHES), *packing(PATCHES)]
    fixed = {f"fixed-{p}": ["--views.patch-sizes", str(p), *packing([p])] for p in PATCHES}
    teacher = str(runs / f"fixed-{TEACHER}")
    started = [*own, "--model", teacher]
    answers = ["--distill.teachers", teacher, "--distill.patch-sizes", str(TEACHER)]
    answers += ["--distill.resolutions", str(TAUGHT_AT)]
    flexible = {"flexible": own, "from fixed": started, DISTILLED: [*started, *answers]}
    return fixed | {name: flexible[name] for name in FLEXIBLE[pictures]}


def draw_pictures(folder: Path, pictures: str, fashion: Path) -> None:
    """The shards of one set, unless they are there."""
    if pictures == "digits":
        draw_digits(folder, TEST_IMAGES)
    elif not (folder / "val/classes.json").exists():  # written last
        write_fashion(folder, TRAIN_IMAGES, TEST_IMAGES, 0, fashion)


def train_seed(out: Path, pictures: str, seed: int) -> list[dict]:
    """All models of one seed, the longest trainings first: the shorter ones start from one of theirs."""
    results = []
    longest = max(LENGTHS)
    for images in sorted(LENGTHS, reverse=True):
        runs = out / pictures / f"seed-{seed}"
        for variant, flags in variants(runs / str(longest), pictures).items():
            flags = [*flags, "--train.images", str(images), "--optim.warmup", str(images // 16)]
            flags += ["--eval.resolutions", *map(str, RESOLUTIONS)]
            flags += ["--eval.patch-sizes", *map(str, PATCHES), "--eval.no-cost"]
            folder = runs / str(images) / variant.replace(" ", "-")
            result = train_once(folder, out / pictures / "data", seed, flags)
            results.append(
                {"pictures": pictures, "images": images, "variant": variant, "seed": seed} | result
            )
    return results


def table(results: list[dict], pictures: str) -> list[str]:
    """Accuracy of every model at its patch sizes, for each length."""
    lines = [f"| {PICTURES[pictures]} | images | {' | '.join(f'p {p}' for p in PATCHES)} | mean |"]
    lines.append("| --- | ---: |" + " ---: |" * (len(PATCHES) + 1))
    for images in LENGTHS:
        runs = Runs([r for r in results if r["pictures"] == pictures and r["images"] == images])
        own = [runs.of(f"fixed-{p}", (p,), RESOLUTIONS) for p in PATCHES]
        rows = {name: [runs.of(name, (p,), RESOLUTIONS) for p in PATCHES] for name in FLEXIBLE[pictures]}
        lines.append(row("each fixed at its own p", images, own))
        for name, cells in rows.items():
            lines.append(row(name, images, cells))
        for name, cells in rows.items():
            gaps = [less(a, b) for a, b in zip(cells, own, strict=True)]
            lines.append(row(f"{name} - fixed", images, gaps, sign="+"))
    return [*lines, "", caption(results, pictures)]


def caption(results: list[dict], pictures: str) -> str:
    """What the table shows."""
    seeds = sorted({r["seed"] for r in results if r["pictures"] == pictures})
    spread_of = f"mean ± standard deviation of n = {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    where = " and ".join(map(str, RESOLUTIONS))
    numbers = " ".join(map(str, seeds))
    return (
        f"Accuracy in percent on {TEST_IMAGES} test canvases, the mean of R = {where}; {spread_of}; "
        f"`python benchmarks/equal_images.py --pictures {pictures} --seeds {numbers}`."
    )


def row(name: str, images: int, cells: list[list[float]], sign: str = "") -> str:
    """One line: a cell for each patch size, and their mean, each over the seeds."""
    means = [sum(each) / len(each) for each in zip(*cells, strict=True)]
    texts = [spread(values, sign) for values in [*cells, means]]
    return f"| {name} | {images:,} | {' | '.join(texts)} |"


def less(a: list[float], b: list[float]) -> list[float]:
    """a - b, seed by seed."""
    return [x - y for x, y in zip(a, b, strict=True)]


def draw(results: list[dict], path: Path) -> None:
    """Accuracy over patch size: a plot for each set, a colour for each model, dashed if training is short."""
    shown = [name for name in PICTURES if any(r["pictures"] == name for r in results)]
    figure = new_figure(4.6 * len(shown), 3.6)
    for place, pictures in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), place)
        for images, style in zip(LENGTHS, ("--", "-"), strict=True):
            runs = Runs([r for r in results if r["pictures"] == pictures and r["images"] == images])
            for number, name in enumerate(("fixed at its own p", *FLEXIBLE[pictures])):
                values = [
                    runs.of(f"fixed-{p}" if name.startswith("fixed") else name, (p,), RESOLUTIONS)
                    for p in PATCHES
                ]
                draw_line(axes, PATCHES, values, f"{name}, {images // 1000}k images", number, style)
        axes.set_title(PICTURES[pictures], size=10)
        dress(axes, PATCHES, "patch size p")
        axes.legend(frameon=False, fontsize=7, handlelength=3.5)
    save_figure(figure, path)


def write(results: list[dict]) -> None:
    """The results, their tables and their picture."""
    save(RESULTS, {"command": "python benchmarks/equal_images.py", **machine(), "results": results})
    for pictures in PICTURES:
        if any(r["pictures"] == pictures for r in results):
            replace_section(f"equal-{pictures}", table(results, pictures), PAGE)
    draw(results, ROOT / "docs/images/equal-images.png")


def main() -> None:
    """Train what is missing; write after each seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/equal-images"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", nargs="+", choices=list(PICTURES), default=list(PICTURES))
    parser.add_argument("--fashion", type=Path, default=INSTALLED, help="folder of the four files")
    arguments = parser.parse_args()
    results: list[dict] = []
    for pictures in arguments.pictures:
        draw_pictures(arguments.out / pictures / "data", pictures, arguments.fashion)
        for seed in arguments.seeds:
            results += train_seed(arguments.out, pictures, seed)
            write(results)


if __name__ == "__main__":
    main()
