"""The demo set: a handwritten digit somewhere on a canvas of any size and shape, over pieces of other digits.

It is made from the 1797 real 8x8 scans in scikit-learn, so it needs no download. Train and test canvases
share no scan, neither as digit nor as clutter. Every canvas is a function of (seed, split, index) alone. One
core makes about 1,000 canvases a second.
"""

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from packvit.common.files import check_writable
from packvit.common.optional import need
from packvit.data.make.write import Sample, check_no_shards, write_classes, write_shards
from packvit.packing import derive_seed

SMALLEST, LARGEST = 24, 160  # pixels, sides of a canvas
STEEPEST = 3.0  # aspect ratios from 1:3 to 3:1
SMALLEST_DIGIT = 12  # pixels
TEST_SHARE = 0.2
JPEG_QUALITY = 92
CLUTTER = 0.3  # what minutes of training on a CPU can learn to see through


def write_digits(
    out: Path,
    train_images: int = 20_000,
    test_images: int = 2_000,
    seed: int = 0,
    *,
    clutter: float = CLUTTER,
    shard_size: int = 500,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the demo set to `out/train` and `out/val`, as JPEG files with the digit as label.

    Args:
        out: folder, created if it is missing.
        train_images, test_images: canvases in each split.
        seed: seed of the split of the scans and of every canvas.
        clutter: 0 = none, 1 = pieces as strong as the digit, all over the canvas.
        shard_size: samples in a shard.
        progress: called with (canvases done, canvases) after each one.

    Raises:
        ValueError: clutter outside [0, 1], a split without images, or shards already in `out`.
        ImportError: scikit-learn is not installed.
    """
    if not 0 <= clutter <= 1:
        raise ValueError(f"clutter={clutter} must be in [0, 1]")
    if train_images < 1 or test_images < 1:
        raise ValueError(f"train_images={train_images} and test_images={test_images} must be at least 1")
    check_writable(out, "the folder")
    splits = {"train": train_images, "val": test_images}
    for split in splits:
        check_no_shards(out / split)
    scans, labels = load_scans()
    parts = dict(zip(splits, split_scans(labels, seed), strict=True))
    total = sum(splits.values())
    done = 0

    def draw(split: str, count: int) -> Iterator[Sample]:
        nonlocal done
        for index in range(count):
            rng = np.random.default_rng(derive_seed(seed, split, index))
            canvas, label = draw_canvas(rng, scans[parts[split]], labels[parts[split]], clutter)
            yield Sample(f"{split}-{index:06d}", encode(canvas), "jpg", label)
            done += 1
            if progress:
                progress(done, total)

    for split, count in splits.items():
        write_shards(draw(split, count), out / split, shard_size)
        write_classes([str(digit) for digit in range(10)], out / split)


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """The scans, uint8 [1797, 8, 8] with full ink at 255, and their digits, int64 [1797]."""
    pixels, digits = need("sklearn.datasets", "demo", "the demo set needs scikit-learn").load_digits(
        return_X_y=True
    )
    return (np.asarray(pixels) * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8), np.asarray(digits)


def split_scans(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the train and the test scans: disjoint, with the same share of every digit."""
    rng = np.random.default_rng(derive_seed(seed, "scans"))
    train, test = [], []
    for digit in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == digit))
        held_out = round(len(members) * TEST_SHARE)
        test.append(members[:held_out])
        train.append(members[held_out:])
    return np.concatenate(train), np.concatenate(test)


def draw_canvas(
    rng: np.random.Generator, scans: np.ndarray, labels: np.ndarray, clutter: float
) -> tuple[np.ndarray, int]:
    """One canvas, uint8 [H, W, 3], and its digit; scans are uint8 [n, 8, 8], labels int [n]."""
    height, width = draw_size(rng)
    choice = int(rng.integers(len(scans)))
    longest = 0.95 * min(height, width)
    side = round(max(SMALLEST_DIGIT, rng.uniform(0.5, 1) * longest))

    ink = np.zeros((height, width), np.float32)  # 0 = background, 1 = full ink
    draw_clutter(rng, ink, scans, side, clutter)
    digit = scale_up(scans[choice], (side, side))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    place = ink[top : top + side, left : left + side]
    np.maximum(place * (1 - 0.5 * digit), digit, out=place)
    return colour(rng, ink), int(labels[choice])


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width in pixels, log-uniform among sizes with an allowed aspect ratio."""
    while True:
        height, width = np.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST), 2))
        if max(height, width) <= STEEPEST * min(height, width):
            return round(height), round(width)


def draw_clutter(
    rng: np.random.Generator, ink: np.ndarray, scans: np.ndarray, side: int, clutter: float
) -> None:
    """Lay pieces of scans over `ink`, float32 [H, W], in place, at scales similar to a digit of `side`."""
    height, width = ink.shape
    count = rng.poisson(clutter * 8 * height * width / side**2)
    for scan in rng.integers(len(scans), size=count):
        rows, cols = rng.integers(2, 6, size=2)
        top, left = rng.integers(9 - rows), rng.integers(9 - cols)
        piece = scans[scan, top : top + rows, left : left + cols]
        scale = side / 8 * math.exp(rng.uniform(-0.7, 0.4))
        h, w = max(2, round(rows * scale)), max(2, round(cols * scale))
        # A piece may hang over the edge, as what surrounds an object in a photograph does.
        y, x = int(rng.integers(-h // 2, height - h // 2)), int(rng.integers(-w // 2, width - w // 2))
        drawn = scale_up(piece, (h, w))[max(0, -y) : height - y, max(0, -x) : width - x]
        place = ink[max(0, y) : y + h, max(0, x) : x + w]
        np.maximum(place, drawn * np.float32(rng.uniform(0.3, 0.4 + 0.6 * clutter)), out=place)


def scale_up(scan: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A scan or a piece of one, uint8, smoothly resized to float32 [size], ink in [0, 1]."""
    image = Image.fromarray(scan).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


def colour(rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
    """Ink in [0, 1], float32 [H, W], in a light tone on a dark one, shaded and noisy; uint8 [H, W, 3]."""
    height, width = ink.shape
    paper = rng.uniform(10, 50) + rng.normal(0, 8, 3)
    pen = rng.uniform(180, 240) + rng.normal(0, 12, 3)
    slope_y, slope_x = rng.uniform(-10, 10, 2)
    shade = np.linspace(-slope_y, slope_y, height)[:, None] + np.linspace(-slope_x, slope_x, width)
    shade = shade.astype(np.float32) + 5 * rng.standard_normal((height, width), dtype=np.float32)
    picture = ink[:, :, None] * (pen - paper).astype(np.float32) + paper.astype(np.float32)
    return np.clip(picture + shade[:, :, None], 0, 255).astype(np.uint8)


def encode(canvas: np.ndarray) -> bytes:
    """A uint8 [H, W, 3] image as a JPEG file of full colour resolution."""
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
