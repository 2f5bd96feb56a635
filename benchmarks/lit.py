"""FlexiLiT's claim: a text tower that learns beside a frozen image tower at random patch sizes serves all of
them as well as one that learns at a single one.

    packvit train scenes --run-dir runs/scenes-0 --seed 0 --data.shards runs/scenes-data/train    # 1, 2, ...
    python benchmarks/lit.py runs/scenes-data runs/scenes-0 runs/scenes-1 runs/scenes-2

writes benchmarks/results/lit.json and the tables of docs/contrastive.md between the marks `lit`; --name gives
the study another name. Runs may be of two towers or of one. Of each run the image tower is kept and frozen,
and new text towers learn to match it: one at patch sizes drawn for each image, one at each patch size alone.
Those of one seed start alike and see the same pairs in the same steps; only patch sizes differ. Each is
tested at every patch size, with R = 48 throughout. The folder given by --work keeps finished runs, so that a
stopped study goes on.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from contrastive import TOKENS, read

from gpu.results import replace_section
from packvit.cli import dispatch
from packvit.common.device import device_name
from packvit.common.ranks import ALONE
from packvit.evaluate import TextEmbedder
from packvit.evaluate.measures.retrieval import rank_pairs
from packvit.models import TextEncoder, load_model, load_tokenizer, load_two_towers, save_model
from packvit.packing import pack_images

ROOT = Path(__file__).parent.parent
PATCHES = (8, 10, 12, 14, 16)
RANDOM = "random p"
TRAINED: dict[str, tuple[int, ...]] = {RANDOM: PATCHES, **{f"p {p}": (p,) for p in PATCHES}}
RESOLUTION = 48
DEPTHS = (1, 10)
# A step has as many pairs whatever the patch size, because the loss compares all of them.
SEQUENCES, IMAGES = 8, 16
# Slots of a sequence over the mean of what its images need, so that all of them fit: grids are rounded, and
# patch sizes that are drawn may all be small.
ROOM_ALONE, ROOM_DRAWN = 1.25, 1.6


def flags(patch_sizes: Sequence[int], steps: int) -> list[str]:
    """How a text tower is trained, beside the recipe."""
    room = ROOM_ALONE if len(patch_sizes) == 1 else ROOM_DRAWN
    slots = round(room * IMAGES * mean((RESOLUTION / p) ** 2 for p in patch_sizes))
    side = str(RESOLUTION)
    return [
        *("--optim.freeze", "body", "--train.steps", str(steps), "--train.checkpoint-every", str(steps)),
        *("--views.resolution.low", side, "--views.resolution.high", side),
        *("--views.patch-sizes", *map(str, patch_sizes)),
        # Images are taken as they come, so that all runs of a seed see the same ones in the same steps.
        *("--packing.algorithm", "next_fit", "--packing.seq-len", str(slots)),
        *("--packing.sequences", str(SEQUENCES), "--packing.max-images", str(IMAGES)),
    ]


def train(data: Path, towers: Path, trained: str, seed: int, steps: int, work: Path) -> Path:
    """The run of one text tower, trained if it is not there yet."""
    images = work / f"images-{seed}"
    if not (images / "model.safetensors").exists():
        save_model(load_model(towers), images)
    folder = work / f"{trained.replace(' ', '-')}-{seed}-{steps}"
    if not (folder / "model.safetensors").exists():
        given = ["--model", str(images), "--run-dir", str(folder), "--seed", str(seed)]
        given += ["--data.shards", str(data / "train"), "--data.workers", "0"]
        given += flags(TRAINED[trained], steps)
        status = dispatch(["train", "scenes", *given])
        if status:
            raise SystemExit(status)
    return folder


@torch.inference_mode()
def measure(run: Path, pictures: list[np.ndarray], captions: list[str]) -> dict[str, list[float]]:
    """Recall in percent at each of PATCHES, of images to texts and of texts to images, at each of DEPTHS."""
    towers = load_two_towers(run)
    encode = TextEncoder(load_tokenizer(run), towers.config.text)
    text = TextEmbedder(towers.text, encode, ALONE, "fp32", TOKENS)(captions).vectors
    own = torch.arange(len(captions))
    found: dict[str, list[float]] = {}
    for patch_size in PATCHES:
        ranking = rank_pairs(towers.embed_images(pack_images(pictures, patch_size, RESOLUTION)), text, own)
        for way, ranks in {"image_to_text": ranking.images, "text_to_image": ranking.texts}.items():
            for depth in DEPTHS:
                hits = 100 * (ranks < depth).double().mean().item()
                found.setdefault(f"{way}_r{depth}", []).append(hits)
    return found


@torch.inference_mode()
def agreement(run: Path, pictures: list[np.ndarray]) -> dict[str, float]:
    """Mean cosines that a run's image tower gives one picture at two of PATCHES, and two pictures at one."""
    towers = load_two_towers(run)
    batches = [pack_images(pictures, p, RESOLUTION) for p in PATCHES]
    seen = torch.stack([towers.embed_images(batch) for batch in batches])  # [p, N, E]
    own = torch.einsum("pne,qne->pqn", seen, seen).mean(2)
    others = torch.einsum("pne,pme->pnm", seen, seen)
    sizes, count = len(PATCHES), len(pictures)
    return {
        "one picture": ((own.sum() - own.trace()) / (sizes * (sizes - 1))).item(),
        "two pictures": ((others.sum() - sizes * count) / (sizes * count * (count - 1))).item(),
    }


def cell(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{spread}"


def table(results: dict, way: str) -> str:
    """A line for each text tower, a column for each patch size that it is tested at; the mean over them, how
    far that of random patch sizes is above it, seed by seed, and the mean of recall@10."""
    recalls: dict[str, list[list[float]]] = {
        name: runs[f"{way}_r1"] for name, runs in results["recall"].items()
    }
    means = {name: [mean(run) for run in runs] for name, runs in recalls.items()}
    columns = [*(f"p {p}" for p in PATCHES), "mean", "random p is above", "mean @10"]
    lines = [f"| text tower trained at | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, runs in recalls.items():
        cells = [cell([run[column] for run in runs]) for column in range(len(PATCHES))]
        above = [ours - theirs for ours, theirs in zip(means[RANDOM], means[name], strict=True)]
        cells += [cell(means[name]), "" if name == RANDOM else cell(above, "+")]
        cells += [cell([mean(run) for run in results["recall"][name][f"{way}_r10"]])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(results: dict) -> str:
    """Both tables, and where they come from."""
    same, others = (mean(a[name] for a in results["cosine"]) for name in ("one picture", "two pictures"))
    end = (
        f"Recall@1, and in the last column recall@10, in percent among {results['captions']} distinct "
        f"captions; mean ± standard deviation over seeds (n = {results['seeds']}); R = {RESOLUTION}, "
        f"{results['steps']} steps of {SEQUENCES * IMAGES} pairs. {results['hardware']}, bf16, "
        f"torch {results['torch']}.\n\n"
        f"The frozen towers' mean cosine of one picture at two patch sizes is {same:.2f}, of two pictures at "
        f"one patch size {others:.2f}."
    )
    ways = {"Image to text:": "image_to_text", "Text to image:": "text_to_image"}
    parts = [f"{title}\n\n{table(results, way)}" for title, way in ways.items()]
    return "\n\n".join([*parts, end])


def main() -> None:
    """Train what is missing, measure all, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder that packvit shards demo wrote")
    parser.add_argument("runs", type=Path, nargs="+", help="runs of one or two towers, of seeds 0, 1, ...")
    parser.add_argument("--steps", type=int, default=200, help="of each text tower")
    parser.add_argument("--name", default="lit", help="of the study: its results, and its marks in the page")
    parser.add_argument("--work", type=Path, help="folder for the runs; by default runs/NAME")
    arguments = parser.parse_args()
    work = arguments.work or Path("runs") / arguments.name
    pictures, captions = read(arguments.data / "val")
    found: dict[str, dict[str, list[list[float]]]] = {}
    alike: list[dict[str, float]] = []
    for seed, towers in enumerate(arguments.runs):
        finished = {
            name: train(arguments.data, towers, name, seed, arguments.steps, work) for name in TRAINED
        }
        for name, run in finished.items():
            for way, recalls in measure(run, pictures, captions).items():
                found.setdefault(name, {}).setdefault(way, []).append(recalls)
        # All of a seed's runs have the same image tower.
        alike.append(agreement(finished[RANDOM], pictures))
    names = " ".join(run.name for run in arguments.runs)
    results = {
        "command": f"python benchmarks/lit.py DATA {names} --steps {arguments.steps} --name {arguments.name}",
        "hardware": f"{device_name(torch.device('cpu'))}, 1 thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seeds": len(arguments.runs),
        "steps": arguments.steps,
        "captions": len(captions),
        "resolution": RESOLUTION,
        "patch_sizes": PATCHES,
        "recall": found,
        "cosine": alike,
    }
    (ROOT / "benchmarks/results" / f"{arguments.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    replace_section(arguments.name, [page(results)], ROOT / "docs/contrastive.md")


if __name__ == "__main__":
    main()
