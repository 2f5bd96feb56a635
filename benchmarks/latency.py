"""How well `packvit plan` predicts the latency of settings that were not measured.

`.venv/bin/python benchmarks/latency.py runs/digits` (a minute on one core) writes
benchmarks/results/latency.json and prints the table of docs/plan.md. Every setting is run once a round, in an
order that is shuffled, so that a slow minute of the machine slows all settings alike. A setting's latency is
the median of its rounds, or the fastest of them, or the median of CPU time, which do not count the time that
neighbours on the machine take. Each setting is then predicted by a fit to all others. How far two halves of
the rounds differ says how exact the measurement itself is.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from packvit.common.device import device_name
from packvit.data import pack_images
from packvit.evaluate.plan.latency import Sample, fit_latency
from packvit.models import PackedViT, load_model

ROOT = Path(__file__).parent.parent
RESOLUTIONS, PATCH_SIZES = (16, 24, 32, 40, 48, 56, 64), (4, 6, 8, 12, 16)
WARM_UP, SEED = 5, 0


def measure(model: PackedViT, rounds: int) -> tuple[list[tuple[int, int]], np.ndarray]:
    """(tokens, patch size) of K settings, and float64 [2, rounds, K]: milliseconds of one square image by the
    clock, and of CPU time.
    """
    rng = np.random.default_rng(SEED)
    batches, sizes = [], []
    for p, side in product(PATCH_SIZES, RESOLUTIONS):
        batch = pack_images([rng.integers(0, 256, (side, side, 3), np.uint8)], p, resolution=side)
        batches.append(batch)
        sizes.append((batch.stats().tokens, p))
    ms = np.empty((2, rounds, len(batches)))
    with torch.inference_mode():
        for batch in batches * WARM_UP:
            model(batch)
        for number in range(rounds):
            for index in rng.permutation(len(batches)):
                clock, cpu = time.perf_counter(), time.thread_time()
                model(batches[index])
                ms[:, number, index] = time.perf_counter() - clock, time.thread_time() - cpu
    return sizes, 1e3 * ms


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    sizes, (clock, cpu) = measure(model, options.rounds)
    ways = {
        "median of all rounds": (clock, np.median),
        "fastest round": (clock, np.min),
        "median of CPU time": (cpu, np.median),
    }
    results = {}
    print("| a setting's latency | error: median | largest | halves differ by: median | largest |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, (ms, statistic) in ways.items():
        latency = statistic(ms, axis=0)
        samples = [Sample(*size, float(value)) for size, value in zip(sizes, latency, strict=True)]
        errors = fit_latency(samples, model.config).errors
        differ = np.abs(statistic(ms[::2], axis=0) / statistic(ms[1::2], axis=0) - 1)
        values = (np.median(errors), errors.max(), np.median(differ), differ.max())
        results[name] = {"samples": [vars(sample) for sample in samples], "errors": errors.tolist()}
        print(f"| {name} | " + " | ".join(f"{value:.1%}" for value in values) + " |")
    facts = {
        "command": f"python benchmarks/latency.py {options.model.name} --rounds {options.rounds}",
        "hardware": f"{device_name(torch.device('cpu'))}, 1 thread",
        "torch": torch.__version__,
        "seed": SEED,
    }
    path = ROOT / "benchmarks/results/latency.json"
    path.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
