"""Compare a training step on images of many sizes with timm's NaFlexViT and vit-pytorch's NaViT on a CPU.

`OMP_NUM_THREADS=2 python benchmarks/model.py` (about 15 minutes on two quiet cores) writes
benchmarks/results/model.json, the tables of docs/performance.md and a sentence of README.md. Without
its peers, which `make bench` installs, it writes nothing.

All train a ViT-Ti, patches of 16, on the same images, already decoded, in bf16 autocast: forward, backward,
AdamW; like the peers packvit has the exact GELU, and like timm mean pooling and no norms of queries and keys.
Every contestant runs at the best of its settings, found by a sweep that is part of the result. The floor is a
plain ViT on images of one size, with as many tokens in total. Noise only ever adds time, so a speed is the
best of interleaved rounds, and ratios are those of the bests.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from contestants import (
    CLASSES,
    FLOOR,
    GROUPED,
    PADDED,
    SEED,
    SORTED,
    SWEPT,
    VARIANTS,
    Made,
    P,
    draw_images,
    floor_size,
    loss_of,
    positions_of,
    tokens_of,
)
from peers import need_peers, versions_of

from gpu.results import replace_section
from packvit.common.device import device_name
from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch, PackedImage

ROOT = Path(__file__).parent.parent
SPEED = "images_per_s"  # a key of the results of sweeps


class Trainer:
    """A model with its optimizer and the forward passes of a step."""

    def __init__(self, made: Made) -> None:
        self.model, self.steps = made
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def seconds(self) -> float:
        """Wall time of one training step."""
        began = time.perf_counter()
        for step in self.steps:
            with torch.autocast("cpu", torch.bfloat16):
                loss = step()
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def best_seconds(trainers: dict[str, Trainer], rounds: int) -> dict[str, float]:
    """The shortest step of each over interleaved rounds, after one to warm up."""
    times = {name: [] for name in trainers}
    for _ in range(rounds + 1):
        for name, trainer in trainers.items():
            times[name].append(trainer.seconds())
    return {name: min(values[1:]) for name, values in times.items()}


def sweep(images: list[np.ndarray], name: str, rounds: int) -> list[dict]:
    """Images per second of a contestant at each of its settings, the fastest first."""
    make, settings = SWEPT[name]
    trainers = {str(i): Trainer(make(images, **setting)) for i, setting in enumerate(settings)}
    best = best_seconds(trainers, rounds)
    rows = [{**s, SPEED: round(len(images) / best[str(i)], 1)} for i, s in enumerate(settings)]
    rows.sort(key=lambda row: -row[SPEED])
    print(name, *rows, sep="\n  ", flush=True)
    return rows


def compare(count: int, rounds: int) -> dict:
    """Images per second of every contestant at its best setting, and how much faster packvit is."""
    torch.manual_seed(SEED)
    images = draw_images(count)
    sweeps, trainers = {}, {}
    for name, (make, _) in SWEPT.items():
        sweeps[name] = sweep(images, name, rounds=3)
        setting = {key: value for key, value in sweeps[name][0].items() if key != SPEED}
        trainers[name] = Trainer(make(images, **setting))
        if name == "packvit":
            trainers |= {n: Trainer(make(images, **setting, **layers)) for n, layers in VARIANTS.items()}
    best = best_seconds(trainers, rounds)
    side, number = floor_size(images)
    total = sum(map(tokens_of, images))
    return {
        "images": count,
        "tokens": total,
        "floor": f"{number} images of {side * P} x {side * P} pixels, {number * side**2} tokens",
        "images_per_s": {name: round(count / seconds, 1) for name, seconds in best.items()},
        "packvit_is_faster_by": {name: round(seconds / best["packvit"], 2) for name, seconds in best.items()},
        "sweeps": sweeps,
    }


def patch_size_cost(rounds: int) -> float:
    """Time of a ViT-S step on 4000 tokens of FlexiViT's ten patch sizes over that with one."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = PackedViT(ViTConfig(width=384, depth=12, heads=6, num_classes=CLASSES, patch_buffer=32))
    trainers = {}
    for name, patch_sizes in {"ten": (48, 40, 30, 24, 20, 16, 15, 12, 10, 8), "one": (16,) * 10}.items():
        drawn = [(p, rng.integers(0, 256, (100, p * p * 3), np.uint8)) for p in patch_sizes * 4]
        positions = positions_of(10, 10)
        images = [PackedImage({(p, p): x}, positions, (10, 10), (p, p), (10 * p, 10 * p)) for p, x in drawn]
        batch = PackedBatch.build([images[start::4] for start in range(4)], 1024)
        trainers[name] = Trainer((model, [lambda batch=batch: loss_of(model(batch))]))
    best = best_seconds(trainers, rounds)
    return round(best["ten"] / best["one"], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    need_peers("timm", "vit_pytorch", "torchvision")
    results = {
        "command": f"python benchmarks/model.py --images {arguments.images} --rounds {arguments.rounds}",
        "hardware": f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "versions": versions_of(("torch", "timm", "vit-pytorch")),
        "training_step": compare(arguments.images, arguments.rounds),
        "ten_patch_sizes_over_one": patch_size_cost(arguments.rounds),
    }
    (ROOT / "benchmarks/results/model.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)


def write_page(results: dict) -> None:
    """Put the numbers into docs/performance.md, and a sentence into README.md."""
    step, versions = results["training_step"], results["versions"]
    lines = ["| training step, ViT-Ti | images/s | packvit is faster by |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {speed} | {step['packvit_is_faster_by'][name]:.2f}x |"
        for name, speed in step["images_per_s"].items()
    ]
    lines += [
        "",
        f"packvit and the peers see {step['images']} images of {step['tokens']} tokens, the plain ViT "
        f"{step['floor']}, counted as {step['images']} images. A ViT-S step on 4000 tokens of ten patch "
        f"sizes takes {results['ten_patch_sizes_over_one']:.2f} times one of a single patch size.",
        "",
        "| swept | images/s by setting, the best first |",
        "| --- | --- |",
    ]
    for name, rows in step["sweeps"].items():
        tried = (f"{', '.join(f'{k} {v}' for k, v in r.items() if k != SPEED)}: {r[SPEED]}" for r in rows)
        lines.append(f"| {name} | {'; '.join(tried)} |")
    lines += [
        "",
        f"{results['hardware']}, torch {versions['torch']}, timm {versions['timm']}, "
        f"vit-pytorch {versions['vit-pytorch']}; `{results['command']}`.",
    ]
    replace_section("step", lines, ROOT / "docs/performance.md")
    padded, by_length, groups, floor = (
        f"{step['packvit_is_faster_by'][name]:.1f}" for name in (PADDED, SORTED, GROUPED, FLOOR)
    )
    text = (
        "On two CPU cores a training step of a ViT-Ti on images of many sizes, each model at its best "
        f"setting, is {padded} times as fast as\ntimm's NaFlexViT with padding, {by_length} times as "
        f"fast where timm's images come sorted by length, and {groups} times as fast as\nvit-pytorch's "
        f"NaViT. It is {floor} times as fast as that of timm's plain ViT on as many tokens of images "
        "of one size."
    )
    replace_section("speed", [text], ROOT / "README.md")


if __name__ == "__main__":
    main()
