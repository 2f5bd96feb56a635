"""How fast a Predictor answers beside a loop over images, and how far its answers depend on their company.

`.venv/bin/python benchmarks/predict.py runs/digits runs/digits-data/val` (minutes on one core) writes
benchmarks/results/predict.json and a table of docs/predict.md. The loop is what anyone would write first: it
decodes an image with Pillow, packs it alone and calls the model. Times are CPU time of one thread for the
model and one for decoding, so that neighbours on the machine count little; medians of rounds.
"""

import argparse
import io
import json
import statistics
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gpu.results import replace_section
from packvit.common.device import device_name
from packvit.data import ShardSet, pack_images
from packvit.evaluate import Prediction, Predictor
from packvit.models import PackedViT

ROOT = Path(__file__).parent.parent
SETTINGS = ((32, 8), (48, 8), (64, 8))  # resolution, patch size


def read_files(shards: str, images: int) -> list[bytes]:
    """The first encoded images of some shards."""
    found = ShardSet.find(shards)
    opened = (found.open(number) for number in range(len(found)))
    return list(islice((shard.image(i) for shard in opened for i in range(len(shard))), images))


@torch.inference_mode()
def loop(model: PackedViT, files: list[bytes], resolution: int, patch_size: int) -> list[int]:
    """The predicted class of each image, one at a time."""
    answers = []
    for data in files:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        answers.append(int(model(pack_images([pixels], patch_size, resolution)).argmax()))
    return answers


def largest_difference(some: list[Prediction], others: list[Prediction]) -> float:
    """Between the scores of the same classes of the same images."""
    pairs = zip(some, others, strict=True)
    scores = [
        (dict(zip(a.labels, a.scores, strict=True)), zip(b.labels, b.scores, strict=True)) for a, b in pairs
    ]
    return max(abs(own[label] - score) for own, other in scores for label, score in other)


def measure(model: str, files: list[bytes], rounds: int) -> list[dict]:
    """A row for each setting."""
    rows = []
    for resolution, patch_size in SETTINGS:
        predictor = Predictor(model, None, resolution, patch_size, top=10**6, device="cpu", workers=1)
        seconds: dict[str, list[float]] = {"loop": [], "predictor": []}
        classes, answers = [], []
        for _ in range(rounds):
            began = time.process_time()
            classes = loop(predictor.vit, files, resolution, patch_size)
            between = time.process_time()
            answers = predictor(files)
            seconds["loop"].append(between - began)
            seconds["predictor"].append(time.process_time() - between)
        alone = [predictor([data])[0] for data in files]
        rates = {name: len(files) / statistics.median(times) for name, times in seconds.items()}
        rows.append(
            {
                "setting": predictor.choice.stages[0].setting.name,
                **{f"{name}_images_per_s": round(rate) for name, rate in rates.items()},
                "other_classes_than_loop": sum(
                    a.labels[0] != c for a, c in zip(answers, classes, strict=True)
                ),
                "other_ranks_alone": sum(a.labels != b.labels for a, b in zip(answers, alone, strict=True)),
                "largest_difference_alone": largest_difference(answers, alone),
            }
        )
    return rows


def write_page(results: dict) -> None:
    """Put the numbers between the marks of docs/predict.md."""
    lines = [
        "| setting | loop, images/s | Predictor, images/s | other classes than the loop "
        "| other ranks than alone | largest difference of a score to alone |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['setting']} | {row['loop_images_per_s']} | {row['predictor_images_per_s']} "
        f"| {row['other_classes_than_loop']} | {row['other_ranks_alone']} "
        f"| {row['largest_difference_alone']:.0e} |"
        for row in results["rows"]
    ]
    lines += [
        "",
        f"{results['images']} images, {results['hardware']}, fp32, torch {results['torch']}, median of "
        f"{results['rounds']} rounds;\n`{results['command']}`.",
    ]
    replace_section("speed", lines, ROOT / "docs/predict.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the demo's run")
    parser.add_argument("shards", help="its validation set")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = read_files(arguments.shards, arguments.images)
    results = {
        "command": "python benchmarks/predict.py runs/digits runs/digits-data/val "
        f"--images {arguments.images} --rounds {arguments.rounds}",
        "hardware": f"{device_name(torch.device('cpu'))}, one thread for the model and one that decodes",
        "torch": torch.__version__,
        "images": len(files),
        "rounds": arguments.rounds,
        "rows": measure(arguments.model, files, arguments.rounds),
    }
    (ROOT / "benchmarks/results/predict.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)


if __name__ == "__main__":
    main()
