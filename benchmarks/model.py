"""Compare a training step on images of many sizes with timm's NaFlexViT and vit-pytorch's NaViT.

`.venv/bin/python benchmarks/model.py` (minutes on two cores) writes benchmarks/results/model.json and the
table of docs/performance.md. `pip install 'packvit[peers]'` brings the peers; without one its row says so.
All train a ViT-Ti, patches of 16, on the same images, sides N(160, 60) cut to 64..256, in bf16 autocast:
forward, backward, AdamW, with the images already decoded. Rounds are interleaved; ratios are their medians.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch, PackedImage, pack_lengths

ROOT = Path(__file__).parent.parent
P, CLASSES, SEED = 16, 1000, 0
WIDTH, DEPTH, HEADS = 192, 12, 3
SEQ_LEN, ROWS = 1024, 4  # of packed sequences, and of vit-pytorch's groups
PADDED = 32  # images in a padded batch
Step = Callable[[], Tensor]  # one forward pass over a part of the images; gives the sum of their losses


def draw_images(count: int) -> list[np.ndarray]:
    """Square uint8 images [side, side, 3], sides multiples of the patch size."""
    rng = np.random.default_rng(SEED)
    sides = np.clip(rng.normal(160, 60, count), 64, 256)
    return [rng.integers(0, 256, (s, s, 3), np.uint8) for s in (np.round(sides / P) * P).astype(int)]


def patches_of(image: np.ndarray) -> np.ndarray:
    """uint8 [side, side, 3] to [n, P * P * 3]."""
    n = len(image) // P
    return np.ascontiguousarray(image.reshape(n, P, n, P, 3).swapaxes(1, 2)).reshape(n * n, -1)


def positions_of(image: np.ndarray) -> np.ndarray:
    """(row, col) of every patch, int32 [n, 2]."""
    n = len(image) // P
    return np.stack(np.divmod(np.arange(n * n), n), 1).astype(np.int32)


def loss_of(logits: Tensor) -> Tensor:
    """Sum of cross-entropies against class 0."""
    return F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long), reduction="sum")


def packvit_steps(images: list[np.ndarray], rows: int, **config) -> tuple[nn.Module, list[Step]]:
    """Packed sequences, `rows` of them at a time."""
    kind = ViTConfig(width=WIDTH, depth=DEPTH, heads=HEADS, num_classes=CLASSES, patch_buffer=P, **config)
    model = PackedViT(kind)
    lengths = [len(patches_of(image)) for image in images]
    sequences = pack_lengths(lengths, SEQ_LEN)
    items = [
        PackedImage({(P, P): patches_of(i)}, positions_of(i), (len(i) // P, len(i) // P), (P, P), i.shape[:2])
        for i in images
    ]
    batches = [
        PackedBatch.build([[items[i] for i in row] for row in sequences[start : start + rows]], SEQ_LEN)
        for start in range(0, len(sequences), rows)
    ]
    return model, [lambda batch=batch: loss_of(model(batch)) for batch in batches]


def timm_steps(images: list[np.ndarray], size: int, by_length: bool) -> tuple[nn.Module, list[Step]]:
    """Batches of `size` images, padded to the longest of each, in arrival order or sorted by length."""
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg  # pyright: ignore[reportMissingImports]

    config = NaFlexVitCfg(
        patch_size=P, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, pos_embed="factorized", global_pool="avg"
    )
    model = NaFlexVit(config, num_classes=CLASSES)
    ordered = sorted(images, key=len) if by_length else images
    steps = []
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        longest = max(len(patches_of(image)) for image in part)
        patches = torch.zeros(len(part), longest, P * P * 3)
        coords = torch.zeros(len(part), longest, 2, dtype=torch.long)
        valid = torch.zeros(len(part), longest, dtype=torch.bool)
        for i, image in enumerate(part):
            n = len(patches_of(image))
            patches[i, :n] = torch.from_numpy(patches_of(image)) / 127.5 - 1
            coords[i, :n] = torch.from_numpy(positions_of(image))
            valid[i, :n] = True
        batch = {"patches": patches, "patch_coord": coords, "patch_valid": valid}
        steps.append(lambda batch=batch: loss_of(model(batch)))
    return model, steps


def vit_pytorch_steps(images: list[np.ndarray], rows: int) -> tuple[nn.Module, list[Step]]:
    """vit-pytorch's NaViT with its own greedy grouping, `rows` groups at a time."""
    from vit_pytorch.na_vit import (  # pyright: ignore[reportMissingImports]
        NaViT,
        group_images_by_max_seq_len,
    )

    model = NaViT(
        image_size=256,
        patch_size=P,
        num_classes=CLASSES,
        dim=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        mlp_dim=4 * WIDTH,
        dim_head=WIDTH // HEADS,
    )
    floats = [torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1 for image in images]
    groups = group_images_by_max_seq_len(floats, patch_size=P, max_seq_len=SEQ_LEN)
    parts = [groups[start : start + rows] for start in range(0, len(groups), rows)]
    return model, [lambda part=part: loss_of(model(part)) for part in parts]


def fixed_steps(images: list[np.ndarray], size: int) -> tuple[nn.Module, list[Step]]:
    """The floor: as many images, all of 160 x 160 pixels, in a plain ViT of timm."""
    from timm.models.vision_transformer import VisionTransformer  # pyright: ignore[reportMissingImports]

    model = VisionTransformer(
        img_size=160, patch_size=P, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=CLASSES
    )
    batch = torch.randn(size, 3, 160, 160)
    return model, [lambda: loss_of(model(batch))] * (len(images) // size)


def contestants(images: list[np.ndarray]) -> dict[str, Callable[[], tuple[nn.Module, list[Step]]]]:
    """{name: makes a model and the forward passes of one step}."""
    return {
        "packvit": lambda: packvit_steps(images, ROWS, pool="mean", qk_norm="none"),
        "packvit, NaViT's norms and pooling": lambda: packvit_steps(images, ROWS, pool="map", qk_norm="rms"),
        "vit-pytorch NaViT, greedy groups": lambda: vit_pytorch_steps(images, ROWS),
        "timm NaFlexViT, padded": lambda: timm_steps(images, PADDED, by_length=False),
        "timm NaFlexViT, sorted": lambda: timm_steps(images, PADDED, by_length=True),
        "timm ViT, all 160 x 160": lambda: fixed_steps(images, PADDED),
    }


class Trainer:
    """A model with its optimizer and the forward passes of a step."""

    def __init__(self, made: tuple[nn.Module, list[Step]]) -> None:
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


def compare(count: int, rounds: int) -> dict:
    """Images per second of every contestant by round, and the median ratios to packvit."""
    torch.manual_seed(SEED)
    images = draw_images(count)
    trainers, missing = {}, {}
    for name, make in contestants(images).items():
        try:
            trainers[name] = Trainer(make())
            trainers[name].seconds()  # warms up
        except ImportError as error:
            missing[name] = f"not measured: {error}"
    speeds = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            speeds[name].append(count / trainer.seconds())
            print(f"{name}: {speeds[name][-1]:.1f} images/s", flush=True)
    ours = speeds["packvit"]
    return {
        "images": count,
        "mean_tokens": float(np.mean([len(patches_of(image)) for image in images])),
        "images_per_s": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
        "packvit_is_faster_by": {
            name: round(statistics.median(a / b for a, b in zip(ours, values, strict=True)), 2)
            for name, values in speeds.items()
        },
        "missing": missing,
    }


def patch_size_cost(rounds: int) -> dict:
    """Time of a ViT-S step with FlexiViT's ten patch sizes in a batch over that with one; as many tokens."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = PackedViT(ViTConfig(width=384, depth=12, heads=6, num_classes=CLASSES, patch_buffer=32))
    sizes = {"ten patch sizes": (48, 40, 30, 24, 20, 16, 15, 12, 10, 8), "one patch size": (16,) * 10}
    trainers = {}
    for name, patch_sizes in sizes.items():
        images = [
            PackedImage(
                {(p, p): rng.integers(0, 256, (100, p * p * 3), np.uint8)},
                grid_positions(10),
                (10, 10),
                (p, p),
                (10 * p, 10 * p),
            )
            for p in patch_sizes * 4
        ]
        batch = PackedBatch.build([images[start::4] for start in range(4)], SEQ_LEN)
        trainers[name] = Trainer((model, [lambda batch=batch: loss_of(model(batch))]))
        trainers[name].seconds()
    ratios = []
    for _ in range(rounds):
        times = {name: min(trainer.seconds() for _ in range(2)) for name, trainer in trainers.items()}
        ratios.append(times["ten patch sizes"] / times["one patch size"])
    return {"tokens": 4000, "ten_patch_sizes_over_one": round(statistics.median(ratios), 3)}


def grid_positions(side: int) -> np.ndarray:
    """(row, col) of a square grid, int32 [side * side, 2]."""
    return np.stack(np.divmod(np.arange(side * side), side), 1).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = {}
    for name in ("torch", "timm", "vit-pytorch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    results = {
        "command": f"python benchmarks/model.py --images {arguments.images} --rounds {arguments.rounds}",
        "hardware": f"{cpu[0].split(': ')[1]}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "versions": versions,
        "training_step": compare(arguments.images, arguments.rounds),
        "patch_sizes": patch_size_cost(arguments.rounds),
    }
    (ROOT / "benchmarks/results/model.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)


def write_page(results: dict) -> None:
    """Put the numbers between the marks of docs/performance.md."""
    step = results["training_step"]
    lines = ["| training step, ViT-Ti | images/s | packvit is faster by |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {speed} | {step['packvit_is_faster_by'][name]:.2f}x |"
        for name, speed in step["images_per_s"].items()
    ]
    lines += [f"| {name} | {reason} | |" for name, reason in step["missing"].items()]
    lines += [
        "",
        f"A ViT-S step on {results['patch_sizes']['tokens']} tokens of ten patch sizes takes "
        f"{results['patch_sizes']['ten_patch_sizes_over_one']:.2f} times one of a single patch size.",
        "",
        f"{results['hardware']}, torch {results['versions']['torch']}, timm {results['versions']['timm']}, "
        f"vit-pytorch {results['versions']['vit-pytorch']}; `{results['command']}`.",
    ]
    page = ROOT / "docs/performance.md"
    before, rest = page.read_text().split("<!-- step -->\n")
    after = rest.split("<!-- /step -->")[1]
    page.write_text(f"{before}<!-- step -->\n\n" + "\n".join(lines) + f"\n\n<!-- /step -->{after}")


if __name__ == "__main__":
    main()
