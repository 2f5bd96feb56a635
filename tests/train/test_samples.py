"""The picture of packed sequences shows what is in the batch that it is drawn from."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from packvit.common.plots import PADDING
from packvit.packing import PackedBatch
from packvit.train.watch import samples
from packvit.train.watch.samples import draw_samples


@pytest.fixture(autouse=True)
def _rendered(rendering) -> Iterator[None]:
    with rendering():
        yield


def colours_of(path) -> Counter[tuple[int, int, int]]:
    """How many pixels of a picture have each colour."""
    with Image.open(path) as image:
        return Counter(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def test_samples_show_patches_and_padding(cut_image, tmp_path):
    red = np.full((32, 16, 3), (250, 3, 3), np.uint8)
    blue = np.full((24, 24, 3), (3, 3, 250), np.uint8)
    image, dropped = cut_image(red, 8, label=4), cut_image(blue, 8, keep=np.arange(5), label=1)
    draw_samples(PackedBatch.build([[image, dropped]], 24), tmp_path / "a.png")
    counts = colours_of(tmp_path / "a.png")
    assert min(counts[250, 3, 3], counts[3, 3, 250], counts[rgb(PADDING)]) > 1000
    draw_samples(PackedBatch.build([[image]], 8), tmp_path / "b.png")
    assert colours_of(tmp_path / "b.png")[rgb(PADDING)] < 100  # smoothed edges of text


def test_a_picture_of_few_images_is_as_wide_as_its_title(cut_image, tmp_path):
    draw_samples(PackedBatch.build([[cut_image(np.zeros((8, 8, 3), np.uint8), 8)]], 4), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("L"))
    dark = np.flatnonzero((pixels[: pixels.shape[0] // 8] < 128).any(0))  # columns of the title
    assert dark[0] > 10
    assert dark[-1] < pixels.shape[1] - 10


def test_a_label_has_its_class_name(cut_image, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(samples, "save_figure", lambda figure, path: drawn.append(figure))
    images = [cut_image(np.zeros((16, 16, 3), np.uint8), 8, label=label) for label in (1, 2)]
    draw_samples(PackedBatch.build([images], 8), tmp_path / "a.png", classes=["cat", "dog"])
    said = [axes.get_xlabel() for axes in drawn[0].axes if axes.get_xlabel()]
    assert said == ["dog\np=8, 4/4 tokens", "label 2\np=8, 4/4 tokens"]


def test_of_very_many_images_the_first_ones_are_drawn(cut_image, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(samples, "save_figure", lambda figure, path: drawn.append(figure))
    images = [cut_image(np.zeros((8, 8, 3), np.uint8), 8) for _ in range(samples.MAX_IMAGES + 5)]
    draw_samples(PackedBatch.build([images], len(images)), tmp_path / "a.png")
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert len(titles) == samples.MAX_IMAGES + 1
    assert titles[-1] == "sequence 0: 41 slots, 41 images, 36 of them shown, 0.0% padding"
