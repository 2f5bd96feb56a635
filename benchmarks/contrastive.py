"""How well trained towers match scenes and captions: recall@1 among 256 distinct captions.

    packvit shards demo runs/scenes-data --kind scenes
    packvit train scenes --run-dir runs/scenes-0 --data.shards runs/scenes-data/train --seed 0
    python benchmarks/contrastive.py runs/scenes-data runs/scenes-0 [RUN ...]

Pictures and captions of the validation set are matched with each other. `held out` are the 64 scenes with a
pair of colour and digit that training never showed, among their own captions and 192 others. Chance is one in
256.
"""

import io
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from packvit.data import CaptionTarget, Shard, expand_shards, pack_images
from packvit.models import PackedText, TextEncoder, TwoTowers, load_tokenizer, load_two_towers

RESOLUTIONS, PATCH_SIZES = (32, 40, 48), (8, 12, 16)


def read(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """Pictures and their first captions."""
    pictures, captions = [], []
    for path in expand_shards(str(folder)):
        shard = Shard.open(path)
        for member in range(len(shard)):
            with Image.open(io.BytesIO(shard.image(member))) as image:
                pictures.append(np.asarray(image))
            captions.append(CaptionTarget().read(shard, member)[0])
    return pictures, captions


def recall(image: Tensor, text: Tensor, first: int = 0) -> float:
    """Percentage of the images [n, E] from `first` on whose own text, of [n, E], is the most alike."""
    best = (image @ text.T).argmax(1)
    return 100 * (best == torch.arange(len(image)))[first:].float().mean().item()


@torch.inference_mode()
def measure(model: TwoTowers, encode: TextEncoder, data: Path) -> list[tuple[float, ...]]:
    """A row for each budget: resolution, patch size, and recall@1 in percent of images to texts, texts to
    images, and held-out pairs."""
    pictures, captions = read(data / "val")
    new_pictures, new_captions = read(data / "held_out")
    texts = [encode(caption).ids for caption in captions + new_captions]
    text = model.embed_texts(PackedText.build(texts))
    rows = []
    for resolution, patch_size in product(RESOLUTIONS, PATCH_SIZES):
        batch = pack_images(pictures + new_pictures, patch_size, resolution)
        image = model.embed_images(batch)
        seen, number = len(pictures), len(new_pictures)
        mixed = torch.arange(number, seen + number)  # as many of both, the held-out ones last
        rows.append(
            (
                resolution,
                patch_size,
                recall(image[:seen], text[:seen]),
                recall(text[:seen], image[:seen]),
                recall(image[mixed], text[mixed], seen - number),
            )
        )
    return rows


def main() -> None:
    """Print a table of the mean over runs, and its spread."""
    data, runs = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    found = []
    for run in runs:
        model = load_two_towers(run)
        found.append(measure(model, TextEncoder(load_tokenizer(run), model.config.text), data))
    mean, spread = np.mean(found, 0), np.std(found, 0)
    print("| R | p | image to text | text to image | held out |\n| --- | --- | --- | --- | --- |")
    for row, deviation in zip(mean, spread, strict=True):
        values = [f"{value:.1f} ± {off:.1f}" for value, off in zip(row[2:], deviation[2:], strict=True)]
        print(f"| {row[0]:.0f} | {row[1]:.0f} | {' | '.join(values)} |")
    print(f"mean image to text {mean[:, 2].mean():.1f}, held out {mean[:, 4].mean():.1f}; {len(runs)} runs")


if __name__ == "__main__":
    main()
