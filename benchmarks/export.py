"""What a model gains and loses when it is exported: sizes of the files, differences, and images a second.

`.venv/bin/python benchmarks/export.py [--model runs/digits]` (two minutes on one core) writes
benchmarks/results/export.json and a table of docs/export.md. Times are CPU time of one thread, so that
neighbours on the machine count little; they are those of the model alone, from patches to logits, as the
median of interleaved rounds.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from PIL import Image

from gpu.results import replace_section
from packvit.common.device import device_name
from packvit.data import pack_images
from packvit.evaluate.export.reader import Reader
from packvit.evaluate.export.verify import graph_difference
from packvit.evaluate.export.write import Answers, write_fixed, write_packed
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT, load_model

ROOT = Path(__file__).parent.parent
SIDES, COUNTS = (4, 8), (1, 8, 32)  # patch sizes of 64-pixel images, and images in a call
SIZE, SEED = 64, 0


def seconds(function: Callable[[], object]) -> float:
    """CPU time of this thread."""
    start = time.thread_time()
    function()
    return time.thread_time() - start


def runs(model: PackedViT, folder: Path, p: int, count: int) -> dict[str, Callable[[], object]]:
    """Each way to run `count` images at patch size p, from the model's own inputs."""
    rng = np.random.default_rng(SEED)
    images = [rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(count)]
    batch = pack_images(images, p)
    pictures = [Image.fromarray(image) for image in images]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1

    def graph(kind: str) -> Callable[[], object]:
        place = folder / kind
        session = onnxruntime.InferenceSession(place / "model.onnx", options, ["CPUExecutionProvider"])
        inputs = Reader(place).inputs(pictures, p if kind == "packed" else None)
        return lambda: session.run(None, inputs)

    def packed() -> None:
        with torch.inference_mode():
            model(batch)

    return {
        "packvit": packed,
        "onnxruntime, any shape": graph("packed"),
        "onnxruntime, one shape": graph(str(p)),
    }


def measure(model: PackedViT, rounds: int) -> dict:
    """Sizes, differences and images a second."""
    results: dict = {"megabytes": {}, "difference": {}, "images_per_cpu_second": {}}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("packed", *map(str, SIDES)):
            place = folder / kind
            place.mkdir()
            if kind == "packed":
                write_packed(model, place, "onnx", Answers())
            else:
                setting = Setting(int(kind), SIZE, protocol="square")
                write_fixed(model, place, "onnx", Answers(), setting, "float32")
            results["megabytes"][kind] = (place / "model.onnx").stat().st_size / 1e6
            results["difference"][kind] = graph_difference(model, place, "onnx")
        for p, count in product(SIDES, COUNTS):
            ways = runs(model, folder, p, count)
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds + 1):  # the first warms up
                for way, run in ways.items():
                    times[way].append(seconds(run))
            speeds = {way: count / statistics.median(values[1:]) for way, values in times.items()}
            results["images_per_cpu_second"][f"{(SIZE // p) ** 2} x {count}"] = speeds
    return results


def write_page(results: dict) -> None:
    """Put the numbers between the marks of docs/export.md."""
    ways = list(next(iter(results["images_per_cpu_second"].values())))
    lines = [f"| tokens x images in a call | {' | '.join(ways)} |", f"| --- |{' ---: |' * len(ways)}"]
    for name, speeds in results["images_per_cpu_second"].items():
        lines.append(f"| {name} | {' | '.join(f'{speeds[way]:.0f}' for way in ways)} |")
    largest = max(results["difference"].values())
    sizes = results["megabytes"]
    lines.append(
        f"\nImages a second of CPU time, {results['hardware']}, torch {results['torch']}, onnxruntime "
        f"{results['onnxruntime']}, median of {results['rounds']} rounds; the model of `make demo`, "
        f"{results['parameters'] / 1e6:.2f} million parameters, {SIZE}-pixel images. `model.onnx` has "
        f"{sizes['packed']:.2f} MB for any shape and {sizes[str(SIDES[-1])]:.2f} MB for one, of which "
        f"float32 weights {results['parameters'] * 4 / 1e6:.2f} MB; the largest difference is {largest:.1e}. "
        f"`{results['command']}`."
    )
    replace_section("export", lines, ROOT / "docs/export.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/digits", help="a run of the demo")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    results = {
        "command": "python benchmarks/export.py",
        "hardware": f"{device_name(torch.device('cpu'))}, 1 thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": version("onnxruntime"),
        "rounds": arguments.rounds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **measure(model, arguments.rounds),
    }
    (ROOT / "benchmarks/results/export.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)


if __name__ == "__main__":
    main()
