"""What contrastive training learns at the demo's size: the tables of docs/contrastive.md.

`python benchmarks/contrastive_study.py scenes` trains both towers on generated scenes with three seeds, and once
with captions that were exchanged among the pictures, which leaves nothing to learn. `... lit` freezes each seed's
image tower and trains a text tower for it at one patch size, for each of five, and at all of them (FlexiLiT).
`... emoji` trains on three designers' emoji and retrieves among the fourth's; npm fetches them. Finished runs in
--out are not repeated, so that a stopped study goes on. Each study replaces its part of
benchmarks/results/contrastive.json and its tables.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean, stdev

import torch
from contrastive import Retrieved, measure
from replication import write_page

from packvit.data import Shard, expand_shards
from packvit.data.make.emoji import write_emoji
from packvit.data.make.scenes import write_scenes
from packvit.data.make.write import Sample, write_shards
from packvit.models import load_model, save_model

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/contrastive.json"
LIT_SIZES, LIT_STEPS = (8, 10, 12, 14, 16), 600
Rows = list[Retrieved]


def train(folder: Path, recipe: str, data: Path, seed: int, flags: Sequence[str] = ()) -> Path:
    """The folder of a run, trained if it is not there yet."""
    if not (folder / "model.safetensors").exists():
        command = [sys.executable, "-m", "packvit.train", recipe, "--run-dir", str(folder), "--seed", str(seed)]
        subprocess.run([*command, "--data.shards", str(data / "train"), *flags], check=True)
    return folder


def scenes_data(out: Path) -> Path:
    """The set of scenes, drawn if it is not there yet."""
    if not (out / "scenes-data/held_out").exists():
        write_scenes(out / "scenes-data")
    return out / "scenes-data"


def exchanged_data(out: Path) -> Path:
    """The scenes of training, each with the captions of another one."""
    folder = out / "exchanged-data"
    if not (folder / "train").exists():
        samples = []
        for path in expand_shards(str(scenes_data(out) / "train")):
            shard = Shard.open(path)
            samples += [(shard.key(m), shard.image(m), shard.read(m, "txt").decode()) for m in range(len(shard))]
        captions = [caption for _, _, caption in samples]
        Random(0).shuffle(captions)
        pairs = zip(samples, captions, strict=True)
        write_shards(
            (Sample(key, image, "jpg", None, caption) for (key, image, _), caption in pairs), folder / "train", 500
        )
    return folder


def scenes(out: Path, seeds: int) -> dict[str, list[Rows]]:
    """Both towers; and the same run with captions that say nothing of their pictures."""
    data = scenes_data(out)
    runs = [train(out / f"scenes-{seed}", "scenes", data, seed) for seed in range(seeds)]
    exchanged = train(out / "exchanged-0", "scenes", exchanged_data(out), 0)
    return {
        "scenes": [measure(run, data, ("val", "held_out")) for run in runs],
        "exchanged": [measure(exchanged, data, ("val", "held_out"))],
    }


def lit(out: Path, seeds: int) -> dict[str, list[Rows]]:
    """Text towers for a frozen image tower: at one patch size each, and at all of them."""
    data = scenes_data(out)
    every = [str(size) for size in LIT_SIZES]
    found: dict[str, list[Rows]] = {}
    for seed in range(seeds):
        frozen = out / f"tower-{seed}"
        if not frozen.exists():
            save_model(load_model(train(out / f"scenes-{seed}", "scenes", data, seed)), frozen)
        for name, sizes in {**{f"p = {size}": [size] for size in every}, "FlexiLiT": every}.items():
            flags = ["--model", str(frozen), "--optim.freeze", "body", "--views.patch-sizes", *sizes]
            flags += ["--train.steps", str(LIT_STEPS), "--eval.patch-sizes", *every]
            run = out / f"lit-{seed}-{name.removeprefix('p = ')}"
            train(run, "scenes", data, seed, flags)
            found.setdefault(name, []).append(measure(run, data, ("val",), (32, 40, 48), LIT_SIZES))
    return found


def emoji(out: Path, seeds: int) -> dict[str, list[Rows]]:
    """Three designers' emoji for training, the fourth's for retrieval."""
    data = out / "emoji-data"
    if not (data / "val").exists():
        write_emoji(data)
    runs = [train(out / f"emoji-{seed}", "emoji", data, seed) for seed in range(seeds)]
    return {"emoji": [measure(run, data, ("val",), (32, 48, 64)) for run in runs]}


STUDIES: dict[str, Callable[[Path, int], dict[str, list[Rows]]]] = {"scenes": scenes, "lit": lit, "emoji": emoji}
