"""What towers that know three designers' emoji find among the fourth's: a table and a picture.

    packvit shards demo runs/emoji-data --kind emoji
    packvit train emoji --run-dir runs/emoji-0 --seed 0 --data.shards runs/emoji-data/train    # 1, 2, ...
    python benchmarks/emoji.py runs/emoji-data runs/emoji-0 runs/emoji-1 runs/emoji-2

writes benchmarks/results/emoji.json, a table of docs/contrastive.md and docs/images/emoji-retrieved.png. Each
run is evaluated as `packvit eval` does it, on the fourth designer's pictures and, to compare, on those of one
designer whom it was trained on. The picture says in words what the first run retrieves for queries drawn at
random, because the designers' pictures may not be copied. The folder given by --work keeps evaluations, and
gets the same picture with the designer's own.
"""

import argparse
import io
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from contrastive import TOKENS
from emoji_picture import Answers, Entry, draw
from PIL import Image
from torch import Tensor

from gpu.results import replace_section
from packvit.common.device import device_name
from packvit.common.ranks import ALONE
from packvit.data import CaptionTarget, Shard, expand_shards, write_shards
from packvit.data.make.emoji import HELD_OUT
from packvit.data.make.write import Sample
from packvit.evaluate import TextEmbedder
from packvit.evaluate.request.api import evaluate
from packvit.models import TextEncoder, load_tokenizer, load_two_towers
from packvit.packing import pack_images

ROOT = Path(__file__).parent.parent
SEEN = "google"  # designer whose pictures are in training
MEASURES = ("image_to_text_r1", "image_to_text_r10", "text_to_image_r1", "text_to_image_r10")
SHOWN, QUERIES, BEST = (48, 12), 8, 5  # resolution and patch size, queries of each kind, answers


class Pictures(NamedTuple):
    """One designer's emoji: encoded pictures and the captions of each."""

    files: list[bytes]
    captions: list[list[str]]


def read(folder: Path, designer: str) -> Pictures:
    """The pictures of a designer in a folder of shards."""
    found = Pictures([], [])
    for path in expand_shards(str(folder)):
        shard = Shard.open(path)
        for member in range(len(shard)):
            if shard.key(member).startswith(f"{designer}-"):
                found.files.append(shard.image(member))
                found.captions.append(CaptionTarget().read(shard, member))
    return found


def evaluate_runs(data: Path, runs: Sequence[Path], work: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """For the held-out designer and the seen one a list of rows for each run."""
    if not (work / SEEN / "manifest.json").exists():  # written last
        pictures = read(data / "train", SEEN)
        texts = ("\n".join(captions) for captions in pictures.captions)
        pairs = enumerate(zip(pictures.files, texts, strict=True))
        write_shards(
            (Sample(f"{n:06d}", image, "png", None, text) for n, (image, text) in pairs), work / SEEN
        )
    rows: dict[str, list[list[dict[str, Any]]]] = {HELD_OUT: [], SEEN: []}
    for run in runs:
        folder = work / f"eval-{run.name}"
        if not (folder / "results.json").exists():
            shards, sets = data / "val", {SEEN: work / SEEN}
            evaluate(run, shards, out=folder, sets=sets, cost=False, device="cpu")
        found = json.loads((folder / "results.json").read_text())["rows"]
        for designer, name in ((HELD_OUT, "main"), (SEEN, SEEN)):
            rows[designer].append([row for row in found if row["set"] == name])
    return rows


def cell(runs: list[list[dict[str, Any]]], setting: int | None, measure: str) -> str:
    """Mean and standard deviation over runs, in percent, at one setting or of the mean over all."""
    parts = [rows if setting is None else [rows[setting]] for rows in runs]
    values = [mean(100 * row[measure] for row in part) for part in parts]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def page(results: dict[str, Any]) -> str:
    """The table, and where it comes from."""
    held_out, seen = results["rows"][HELD_OUT], results["rows"][SEEN]
    settings: list[int | None] = [*range(len(held_out[0])), None]
    ways = ("image to text, @1", "@10", "text to image, @1", "@10")
    head = ["R", "p", *ways, f"{SEEN.title()}'s: image to text, @1"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- |" + " ---: |" * 5]
    for setting in settings:
        row = held_out[0][setting] if setting is not None else {"resolution": "mean", "patch_size": ""}
        cells = [str(row["resolution"]), str(row["patch_size"])]
        cells += [cell(held_out, setting, measure) for measure in MEASURES]
        cells.append(cell(seen, setting, MEASURES[0]))
        lines.append(f"| {' | '.join(cells)} |")
    first = held_out[0][0]
    return "\n".join(
        [
            *lines,
            "",
            f"Recall in percent among {first['images']:,} of {HELD_OUT.title()}'s pictures and "
            f"{first['texts']:,} captions, mean ± standard deviation of n = {len(held_out)} seeds. "
            f"{results['hardware']}, bf16, torch {results['torch']}.",
        ]
    )


@torch.inference_mode()
def compare(run: Path, pictures: Pictures) -> tuple[Tensor, list[str], list[int]]:
    """Cosines [N, M] of pictures and captions, the captions and the picture that each belongs to."""
    towers = load_two_towers(run)
    encode = TextEncoder(load_tokenizer(run), towers.config.text)
    texts = [text for captions in pictures.captions for text in captions]
    owner = [n for n, captions in enumerate(pictures.captions) for _ in captions]
    text = TextEmbedder(towers.text, encode, ALONE, "fp32", TOKENS)(texts).vectors
    resolution, patch_size = SHOWN
    image = towers.embed_images(pack_images(pictures.files, patch_size, resolution))
    return image @ text.T, texts, owner


def answer(run: Path, pictures: Pictures, with_pictures: bool) -> dict[str, list[Answers]]:
    """Answers to queries drawn at random: captions first, then pictures."""
    cosines, texts, owner = compare(run, pictures)
    drawn = Random(0).sample(range(len(pictures.files)), 2 * QUERIES)

    def entry(image: int, cosine: float = 0.0, hit: bool = False) -> Entry:
        shown = np.asarray(Image.open(io.BytesIO(pictures.files[image]))) if with_pictures else None
        return Entry(pictures.captions[image][0], shown, cosine, hit)

    by_caption, by_picture = [], []
    for image in drawn[:QUERIES]:
        scores, places = cosines[:, owner.index(image)].sort(descending=True, stable=True)
        best = zip(places[:BEST].tolist(), scores.tolist(), strict=False)
        query = Entry(pictures.captions[image][0])
        by_caption.append(Answers(query, [entry(place, score, place == image) for place, score in best]))
    for image in drawn[QUERIES:]:
        scores, places = cosines[image].sort(descending=True, stable=True)
        best = zip(places[:BEST].tolist(), scores.tolist(), strict=False)
        entries = [Entry(texts[place], None, score, owner[place] == image) for place, score in best]
        by_picture.append(Answers(entry(image), entries))
    return {
        "A caption, and the five pictures that are most like it": by_caption,
        "A picture, and the five captions that are most like it": by_picture,
    }


def main() -> None:
    """Evaluate, write the table, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder that packvit shards demo wrote")
    parser.add_argument("runs", type=Path, nargs="+", help="runs of emoji, of seeds 0, 1, ...")
    parser.add_argument("--work", type=Path, default=Path("runs/emoji-retrieved"), help="folder for results")
    arguments = parser.parse_args()
    data, runs, work = arguments.data, arguments.runs, arguments.work
    results = {
        "command": f"python benchmarks/emoji.py DATA {' '.join(run.name for run in runs)}",
        "hardware": f"{device_name(torch.device('cpu'))}, 1 thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seeds": len(runs),
        "rows": evaluate_runs(data, runs, work),
    }
    (ROOT / "benchmarks/results/emoji.json").write_text(json.dumps(results, indent=1) + "\n")
    replace_section("emoji", [page(results)], ROOT / "docs/contrastive.md")
    pictures = read(data / "val", HELD_OUT)
    draw(answer(runs[0], pictures, with_pictures=False), ROOT / "docs/images/emoji-retrieved.png")
    draw(answer(runs[0], pictures, with_pictures=True), work / "retrieved.png")


if __name__ == "__main__":
    main()
