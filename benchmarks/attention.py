"""What attention costs on a CPU by backend, and a training step by norm of queries and keys and with compile.

`.venv/bin/python benchmarks/attention.py` (minutes on one core) writes benchmarks/results/attention.json and
a table of docs/performance.md. Times are CPU time of one thread, so that neighbours on the machine count
little; rounds are interleaved and their medians reported. Images are those of benchmarks/model.py: sides
N(160, 60) cut to 64..256, patches of 16.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.results import replace_section
from packvit.common.device import device_name
from packvit.data import pack_images
from packvit.models import PackedViT, Segments, attention, preset
from packvit.packing import PackedBatch

ROOT = Path(__file__).parent.parent
HEADS, HEAD_DIM, P, SEQ_LEN, SEED = 3, 64, 16, 1024, 0  # as the preset Ti
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_batch(count: int) -> PackedBatch:
    """Images of many sizes in sequences of SEQ_LEN."""
    rng = np.random.default_rng(SEED)
    sides = (np.round(np.clip(rng.normal(160, 60, count), 64, 256) / P) * P).astype(int)
    images = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in sides]
    return pack_images(images, P, seq_len=SEQ_LEN)


def attend_one_by_one(q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> Tensor:
    """A kernel call for every segment: what anyone would write first."""
    parts = []
    for start, end in pairwise(bounds):
        a, b, c = (x[start:end].transpose(0, 1) for x in (q, k, v))
        parts.append(F.scaled_dot_product_attention(a, b, c).transpose(0, 1))
    return torch.cat(parts)


def attention_steps(batch: PackedBatch) -> dict[str, Callable[[], None]]:
    """{name: forward and backward of one layer's attention} for every way and dtype."""
    steps = {}
    bounds = batch.cu_seqlens.tolist()
    buckets, mask = (Segments.build(batch.cu_seqlens, batch.max_len, name) for name in ("sdpa", "dense"))
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "sdpa, by length": lambda q, k, v: attention(q, k, v, buckets),
        "one call a segment": lambda q, k, v: attend_one_by_one(q, k, v, bounds),
        "dense": lambda q, k, v: attention(q, k, v, mask),
    }
    for (name, attend), (kind, dtype) in product(ways.items(), DTYPES.items()):
        torch.manual_seed(SEED)
        shape = (batch.num_slots, HEADS, HEAD_DIM)
        qkv = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in "qkv"]
        steps[f"{name}, {kind}"] = lambda attend=attend, qkv=qkv: attend(*qkv).sum().backward()
    return steps


def model_steps(batch: PackedBatch) -> dict[str, Callable[[], None]]:
    """{name: forward and backward of a ViT-Ti} by qk_norm, dtype and whether the blocks are compiled."""
    steps = {}
    kinds = [(norm, kind, False) for norm in ("none", "rms", "layer") for kind in DTYPES]
    for norm, kind, compiled in [*kinds, ("rms", "fp32", True), ("rms", "bf16", True)]:
        torch.manual_seed(SEED)
        model = PackedViT(preset("Ti", qk_norm=norm, patch_buffer=P))
        if compiled:
            model.compile_blocks()
        cast = torch.autocast("cpu", torch.bfloat16) if kind == "bf16" else nullcontext()

        def step(model: PackedViT = model, cast=cast) -> None:
            with cast:
                logits = model(batch)
            F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long)).backward()

        steps[f"qk_norm={norm}, {kind}" + (", compiled" if compiled else "")] = step
    return steps


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU time of each, by round."""
    times = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if number:  # the first one compiles and warms up
                times[name].append(round(1e3 * (time.process_time() - began), 1))
    return times


def write_page(results: dict) -> None:
    """Put the numbers between the marks of docs/performance.md."""
    lines = []
    for title, key in (
        ("attention, one layer", "attention_ms"),
        ("forward and backward, ViT-Ti", "model_ms"),
    ):
        names = [name for name in results[key] if "fp32" in name]
        lines += [f"| {title} | fp32, ms | bf16, ms |", "| --- | ---: | ---: |"]
        for name in names:
            full, half = (
                statistics.median(results[key][name.replace("fp32", kind)]) for kind in ("fp32", "bf16")
            )
            lines.append(f"| {name.replace(', fp32', '')} | {full:.0f} | {half:.0f} |")
        lines.append("")
    lines.append(
        f"{results['hardware']}, torch {results['torch']}, {results['images']} images of together "
        f"{results['tokens']} tokens, median of {results['rounds']} rounds; `{results['command']}`."
    )
    replace_section("attention", lines, ROOT / "docs/performance.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batch = make_batch(arguments.images)
    results = {
        "command": f"python benchmarks/attention.py --images {arguments.images} --rounds {arguments.rounds}",
        "hardware": f"{device_name(torch.device('cpu'))}, 1 thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": SEED,
        "rounds": arguments.rounds,
        "images": batch.num_images,
        "tokens": batch.stats().tokens,
        "attention_ms": measure(attention_steps(batch), arguments.rounds),
        "model_ms": measure(model_steps(batch), arguments.rounds),
    }
    (ROOT / "benchmarks/results/attention.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)


if __name__ == "__main__":
    main()
