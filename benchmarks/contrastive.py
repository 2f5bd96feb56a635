"""How well trained towers match scenes and captions: recall@1 and @10 among 256 distinct captions.

    packvit shards demo runs/scenes-data --kind scenes
    packvit train scenes --run-dir runs/scenes-0 --data.shards runs/scenes-data/train --seed 0
    python benchmarks/contrastive.py runs/scenes-data runs/scenes-0 [RUN ...]

Pictures and captions of the validation set are matched with each other. `held out` are the 64 scenes with a
pair of colour and digit that training never showed, among their own captions and 192 others. Chance is one in
256.
"""

import argparse
import io
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from packvit.common.ranks import ALONE
from packvit.data import CaptionTarget, Shard, expand_shards, pack_images
from packvit.evaluate import TextEmbedder
from packvit.evaluate.measures.retrieval import rank_pairs
from packvit.models import TextEncoder, TwoTowers, load_tokenizer, load_two_towers

RESOLUTIONS, PATCH_SIZES, DEPTHS = (32, 40, 48), (8, 12, 16), (1, 10)
TOKENS = 8192  # of texts at once


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


@torch.inference_mode()
def measure(model: TwoTowers, encode: TextEncoder, data: Path) -> list[list[tuple[float, ...]]]:
    """For each of DEPTHS a row for each budget: resolution, patch size, and recall in percent of images to
    texts, texts to images, and held-out images to texts."""
    pictures, captions = read(data / "val")
    new_pictures, new_captions = read(data / "held_out")
    text = TextEmbedder(model.text, encode, ALONE, "fp32", TOKENS)(captions + new_captions).vectors
    tables: list[list[tuple[float, ...]]] = [[] for _ in DEPTHS]
    for resolution, patch_size in product(RESOLUTIONS, PATCH_SIZES):
        batch = pack_images(pictures + new_pictures, patch_size, resolution)
        image = model.embed_images(batch)
        seen, number = len(pictures), len(new_pictures)
        own = torch.arange(seen)
        known = rank_pairs(image[:seen], text[:seen], own)
        # As many captions, of which those of the held-out scenes are the last.
        mixed = rank_pairs(image[number:], text[number:], own).images[seen - number :]
        for table, depth in zip(tables, DEPTHS, strict=True):
            hits = (known.images < depth, known.texts < depth, mixed < depth)
            shares = (100 * hit.double().mean().item() for hit in hits)
            table.append((resolution, patch_size, *shares))
    return tables


def main() -> None:
    """Print a table of the mean over runs, and its spread, for each depth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder that packvit shards demo wrote")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    arguments = parser.parse_args()
    data, runs = arguments.data, arguments.runs
    found = []
    for run in runs:
        model = load_two_towers(run)
        found.append(measure(model, TextEncoder(load_tokenizer(run), model.config.text), data))
    for depth, mean, spread in zip(
        DEPTHS, np.mean(found, 0), np.std(found, 0, ddof=int(len(runs) > 1)), strict=True
    ):
        print(f"Recall@{depth}\n\n| R | p | image to text | text to image | held out |")
        print("| --- | --- | --- | --- | --- |")
        for row, deviation in zip(mean, spread, strict=True):
            values = [f"{value:.1f} ± {off:.1f}" for value, off in zip(row[2:], deviation[2:], strict=True)]
            print(f"| {row[0]:.0f} | {row[1]:.0f} | {' | '.join(values)} |")
        means = f"mean image to text {mean[:, 2].mean():.1f}, held out {mean[:, 4].mean():.1f}"
        print(f"{means}; {len(runs)} runs\n")


if __name__ == "__main__":
    main()
