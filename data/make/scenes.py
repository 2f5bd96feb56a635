"""Scenes with captions: a handwritten digit in a colour, small or big, at one side of a canvas.

Scenes differ only in what their captions say, so a model that matches pictures and captions has learned all
four words. A tenth of the pairs of colour and digit appear in no scene of training: to match these, a model
must have learned colours and digits separately. The scans are those of the demo set (`digits.py`); scenes for
evaluation show scans that training lacks. Every scene is a function of (seed, split, index) alone.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from packvit.common.files import check_writable
from packvit.data.make.digits import encode, load_scans, scale_up, split_scans
from packvit.data.make.write import Sample, check_no_shards, write_shards
from packvit.packing import derive_seed

COLOURS = {
    "red": (230, 40, 40),
    "orange": (240, 140, 20),
    "yellow": (235, 225, 50),
    "green": (50, 190, 60),
    "cyan": (60, 210, 220),
    "blue": (60, 90, 240),
    "purple": (170, 60, 220),
    "white": (240, 240, 240),
}
SIZES = {"small": (0.28, 0.36), "big": (0.55, 0.7)}  # of the canvas's shorter side
SIDES = {"left": (0.5, 0.0), "right": (0.5, 1.0), "top": (0.0, 0.5), "bottom": (1.0, 0.5)}  # (y, x)
HELD_OUT_SHARE = 0.1
DISTINCT = 256  # captions of the validation set
SMALLEST, LARGEST, STEEPEST = 44, 112, 1.6  # sides of a canvas in pixels, and their ratio


class Scene(NamedTuple):
    """What a picture shows."""

    colour: str
    digit: int
    size: str
    side: str

    @property
    def captions(self) -> tuple[str, str]:
        """Two ways to say it."""
        return (
            f"a {self.size} {self.colour} {self.digit} at the {self.side}",
            f"at the {self.side} is a {self.digit}, {self.size} and {self.colour}",
        )


def write_scenes(out: Path, train_images: int = 20_000, seed: int = 0, shard_size: int = 500) -> None:
    """Write `out/train`, `out/val` and `out/held_out`: JPEG files, the digit as label, and two captions.

    `val` has 256 scenes that differ in what they say, `held_out` all whose pair of colour and digit training
    lacks, one picture each.

    Args:
        out: folder, created if missing.
        train_images: scenes for training, of any pair that is not held out.
        seed: of the split and of every scene.

    Raises:
        ValueError: no image for training, or shards already in `out`.
        ImportError: scikit-learn is not installed.
    """
    if train_images < 1:
        raise ValueError(f"train_images={train_images} must be at least 1")
    check_writable(out, "the folder")
    scans, labels = load_scans()
    parts = split_scans(labels, seed)
    seen, held_out = split_scenes(seed)
    rng = Random(derive_seed(seed, "scenes"))
    splits = {
        "train": (rng.choices(seen, k=train_images), parts[0]),
        "val": (rng.sample(seen, DISTINCT), parts[1]),
        "held_out": (held_out, parts[1]),
    }
    for split in splits:
        check_no_shards(out / split)

    def draw(split: str, scenes: Sequence[Scene], members: np.ndarray) -> Iterator[Sample]:
        for index, scene in enumerate(scenes):
            own = np.random.default_rng(derive_seed(seed, split, index))
            scan = scans[own.choice(members[labels[members] == scene.digit])]
            picture = encode(draw_scene(own, scene, scan))
            caption = "\n".join(scene.captions)
            yield Sample(f"{split}-{index:06d}", picture, "jpg", scene.digit, caption)

    for split, (scenes, members) in splits.items():
        write_shards(draw(split, scenes, members), out / split, shard_size)


def split_scenes(seed: int) -> tuple[list[Scene], list[Scene]]:
    """All scenes whose pairs of colour and digit training shows, and those it does not.

    Held-out pairs are spread, so that training shows each colour and each digit often.
    """
    rng = Random(derive_seed(seed, "pairs"))
    colours, digits = list(COLOURS), list(range(10))
    rng.shuffle(colours)
    rng.shuffle(digits)
    count = round(HELD_OUT_SHARE * len(colours) * len(digits))
    pairs = {(colours[i % len(colours)], digits[i % len(digits)]) for i in range(count)}
    every = [Scene(*parts) for parts in product(COLOURS, range(10), SIZES, SIDES)]
    held_out = [scene for scene in every if (scene.colour, scene.digit) in pairs]
    return [scene for scene in every if (scene.colour, scene.digit) not in pairs], held_out


def draw_scene(rng: np.random.Generator, scene: Scene, scan: np.ndarray) -> np.ndarray:
    """A picture of a scene, uint8 [H, W, 3], with the digit that `scan`, uint8 [8, 8], shows."""
    height, width = draw_size(rng)
    side = round(rng.uniform(*SIZES[scene.size]) * min(height, width))
    corner = []
    for length, middle in zip((height, width), SIDES[scene.side], strict=True):
        # Near the edge that the caption names, and around the middle along it.
        share = np.clip(middle + rng.uniform(-0.1, 0.1), 0, 1)
        corner.append(round(float(share) * (length - side)))
    top, left = corner
    picture = rng.uniform(15, 55) + rng.normal(0, 6, 3) + 6 * rng.standard_normal((height, width, 3))
    ink = scale_up(scan, (side, side))[:, :, None]
    pen = np.array(COLOURS[scene.colour]) + rng.normal(0, 8, 3)
    place = picture[top : top + side, left : left + side]
    place += ink * (pen - place)
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width in pixels, log-uniform among those with an allowed aspect ratio."""
    while True:
        height, width = np.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST), 2))
        if max(height, width) <= STEEPEST * min(height, width):
            return round(height), round(width)
