"""Fashion-MNIST as shards: 70,000 small photographs of clothes, on canvases of any size and shape.

The files are those of Xiao, Rasul and Vollgraf (arXiv 1708.07747), in Debian's package dataset-fashion-mnist.
A photograph is scaled and placed as a digit of the demo is, without clutter: it already fills its frame.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from packvit.data import write_shards
from packvit.data.make.digits import draw_canvas, encode
from packvit.data.make.write import Sample, write_classes
from packvit.packing import derive_seed

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    *("t-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
HEADERS = {"images-idx3": 16, "labels-idx1": 8}  # bytes before the data, by kind of file


def write_fashion(out: Path, train_images: int, test_images: int, seed: int, files: Path) -> None:
    """Write `out/train` and `out/val`; the photographs in `files` keep their split."""
    for split, name, count in (("train", "train", train_images), ("val", "t10k", test_images)):
        photographs = read(files, name, "images-idx3").reshape(-1, 28, 28)
        labels = read(files, name, "labels-idx1")
        write_shards(draw(photographs, labels, split, count, seed), out / split, 500)
        write_classes(list(CLASSES), out / split)


def read(files: Path, split: str, kind: str) -> np.ndarray:
    """The bytes after the header of one of the four files, uint8."""
    path = files / f"{split}-{kind}-ubyte.gz"
    if not path.exists():
        raise SystemExit(
            f"{path} is missing: install Debian's package dataset-fashion-mnist or give --fashion"
        )
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=HEADERS[kind])


def draw(photographs: np.ndarray, labels: np.ndarray, split: str, count: int, seed: int) -> Iterator[Sample]:
    """`count` canvases; each is a function of its seed, split and index."""
    for index in range(count):
        rng = np.random.default_rng(derive_seed(seed, split, index))
        canvas, label = draw_canvas(rng, photographs, labels, clutter=0)
        yield Sample(f"{split}-{index:06d}", encode(canvas), "jpg", label)
