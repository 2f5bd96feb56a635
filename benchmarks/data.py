"""Compare the data path with a plain webdataset and Pillow pipeline, and watch a worker's memory.

`.venv/bin/python benchmarks/data.py` (a few minutes on one core) writes benchmarks/results/data.json,
docs/images/data-memory.png and the tables of docs/data.md. All pipelines read the same shards of
photograph-like JPEGs, in this process, and show every image at a side drawn from U(64, 256).
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from peers import need_peers, versions_of
from PIL import Image
from webdataset.compat import WebDataset

from gpu.results import replace_section, table
from packvit.data import DataConfig, DataPlan, Shard, Stream, expand_shards, write_shards
from packvit.data.make.write import Sample
from packvit.data.samples import decode as decode_module
from packvit.data.streams import stream as stream_module
from packvit.packing import DropConfig, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.packing.images import files as image_files
from pipelines.exact import distances
from pipelines.photograph import photograph

ROOT = Path(__file__).parent.parent
SIZES = ((640, 480), (1920, 1080))  # width, height
PHOTOS, ROUNDS, SECONDS = 120, 5, 6.0
LOW, HIGH, PATCH = 64, 256, 16
VIEWS = ViewsConfig((PATCH,), resolution=ResolutionConfig(LOW, HIGH, "uniform"))
MEMORY_SAMPLES, MEMORY_STEP = 200_000, 4_000
DISTANCES = {
    "torch": "`torch`, beside Pillow's filter on the whole picture",
    "pillow": "`pillow`, beside the same",
    "both": "`torch` beside `pillow`",
}


def make_plan(shards: list[str], streams: int, views: ViewsConfig, packing: PackingConfig) -> DataPlan:
    """A run that reads images and labels, whatever the number of classes."""
    data = DataConfig(tuple(shards), streams=streams, workers=0)
    return DataPlan(data, views, packing, targets={"label": data.class_target(None)})


def packvit_images(shards: list[str]) -> Iterator[int]:
    """Images of each batch of one stream: planned, packed, decoded, cut."""
    packing = PackingConfig(seq_len=1024, sequences=4, balance=4)
    stream = Stream(make_plan(shards, 1, VIEWS, packing), 0)
    while True:
        batch = stream.next_batch().batch
        assert batch is not None
        yield batch.num_images


def plain_images(shards: list[str]) -> Iterator[int]:
    """webdataset reads, Pillow decodes whole and resizes, numpy cuts; nothing is packed."""
    rng = Random(0)

    def show(image: Image.Image) -> np.ndarray:
        scale = rng.uniform(LOW, HIGH) / (image.width * image.height) ** 0.5
        rows, cols = (max(1, round(side * scale / PATCH)) for side in (image.height, image.width))
        small = image.resize((cols * PATCH, rows * PATCH), Image.Resampling.BICUBIC)
        cut = np.asarray(small).reshape(rows, PATCH, cols, PATCH, 3).swapaxes(1, 2)
        return np.ascontiguousarray(cut).reshape(rows * cols, -1)

    samples: Any = WebDataset(shards, shardshuffle=False, empty_check=False)
    for _ in cycle((0,)):
        for _ in samples.decode("pilrgb").to_tuple("jpg", "cls").map_tuple(show, int):
            yield 1


def timm_images(shards: list[str]) -> Iterator[int]:
    """timm's NaFlex transforms behind the same reader: resized to a token count, patchified."""
    from timm.data.naflex_transforms import (  # pyright: ignore[reportMissingImports]
        Patchify,
        ResizeToSequence,
    )
    from torchvision.transforms import PILToTensor  # pyright: ignore[reportMissingImports]

    patchify, to_tensor, rng = Patchify(PATCH), PILToTensor(), Random(0)

    def show(image: Image.Image) -> object:
        tokens = max(1, round((rng.uniform(LOW, HIGH) / PATCH) ** 2))
        return patchify(to_tensor(ResizeToSequence(PATCH, tokens)(image)))

    samples: Any = WebDataset(shards, shardshuffle=False, empty_check=False)
    for _ in cycle((0,)):
        for _ in samples.decode("pilrgb").to_tuple("jpg", "cls").map_tuple(show, int):
            yield 1


PIPELINES: dict[str, Callable[[list[str]], Iterator[int]]] = {
    "packvit": packvit_images,
    "webdataset + Pillow": plain_images,
    "timm NaFlex": timm_images,
}


def rate(images: Iterator[int], seconds: float) -> float:
    """Images per second of CPU time, after a first batch that is not counted."""
    next(images)
    began, count = time.process_time(), 0
    while (spent := time.process_time() - began) < seconds:
        count += next(images)
    return count / spent


def compare(shards: list[str]) -> dict[str, float]:
    """Median over interleaved rounds of the images per second of CPU time, by pipeline."""
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, pipeline in PIPELINES.items():
            rates.setdefault(name, []).append(rate(pipeline(shards), SECONDS / ROUNDS))
    return {name: round(statistics.median(found), 1) for name, found in rates.items()}


def bookkeeping_share(shards: list[str]) -> float:
    """Share of a worker's time that is neither reading, decoding and cutting nor laying out a batch."""
    spent = 0.0

    def timed(function: Callable) -> Callable:
        def run(*args, **kwargs) -> object:
            nonlocal spent
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent += time.perf_counter() - began

        return run

    patched = [(stream_module, "decode_sample"), (stream_module, "cut_views")]
    patched += [(decode_module, "read_native_size"), (stream_module.PackedBatch, "build")]
    originals = [getattr(owner, name) for owner, name in patched]
    for (owner, name), original in zip(patched, originals, strict=True):
        setattr(owner, name, staticmethod(timed(original)) if name == "build" else timed(original))
    try:
        batches = packvit_images(shards)
        next(batches)
        spent, began = 0.0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            next(batches)
        return 1 - spent / (time.perf_counter() - began)
    finally:
        for (owner, name), original in zip(patched, originals, strict=True):
            setattr(owner, name, staticmethod(original) if name == "build" else original)


def memory_over_samples(folder: Path) -> list[tuple[int, float]]:
    """(samples read, resident megabytes) of a process that reads many samples of eight streams."""
    rng = np.random.default_rng(0)
    small = [photograph(rng, 48, 32) for _ in range(50)]
    write_shards((Sample(f"s{i:05d}", small[i % 50], "jpg", 0) for i in range(8000)), folder, 500)
    shards = expand_shards(str(folder))
    views = ViewsConfig(
        (8,), resolution=ResolutionConfig(16, 32, "uniform"), drop=DropConfig("beta", 0.5, 0.9)
    )
    packing = PackingConfig(seq_len=256, sequences=8)
    plan = make_plan(shards, 8, views, packing)
    streams = [Stream(plan, index) for index in range(8)]
    points, following = [], 0
    for stream in cycle(streams):
        seen = sum(one.seen for one in streams)
        if seen >= following:
            points.append((seen, resident_megabytes()))
            following += MEMORY_STEP
        if seen >= MEMORY_SAMPLES:
            return points
        stream.next_batch()
    return points


def resident_megabytes() -> float:
    """Memory of this process that is in RAM, in 10**6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def draw_memory(points: list[tuple[int, float]], path: Path) -> None:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([seen / 1000 for seen, _ in points], [used for _, used in points], color="#0072B2")
    axes.set_ylim(0, 1.2 * max(used for _, used in points))
    axes.set_xlabel("samples read, thousands")
    axes.set_ylabel("resident memory, MB")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "command": "python benchmarks/data.py",
        "hardware": f"{cpu[0].split(': ')[1]}, one core of {len(cpu)}",
        "python": platform.python_version(),
        **versions_of(("numpy", "pillow", "simplejpeg", "webdataset", "timm")),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    need_peers("timm", "torchvision", "simplejpeg")
    results: dict = machine() | {"bits_per_pixel": {}, "images_per_cpu_second": {}, "bookkeeping_share": {}}
    results["grey_levels"] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for width, height in SIZES:
            rng = np.random.default_rng(0)
            name, folder = f"{width}x{height}", Path(temporary) / f"{width}"
            samples = (Sample(f"p{i:04d}", photograph(rng, width, height), "jpg", 0) for i in range(PHOTOS))
            write_shards(samples, folder, 40)
            shards = expand_shards(str(folder))
            size = statistics.mean(len(Shard.open(shards[0]).image(i)) for i in range(40))
            results["bits_per_pixel"][name] = round(8 * size / (width * height), 2)
            rng = np.random.default_rng(0)
            few = [photograph(rng, width, height) for _ in range(4)]
            results["grey_levels"][name] = distances(few, range(LOW, HIGH, PATCH), PATCH)
            results["images_per_cpu_second"][name] = compare(shards)
            with_simplejpeg, image_files.simplejpeg = image_files.simplejpeg, None
            results["images_per_cpu_second"][name]["packvit without simplejpeg"] = compare_one(shards)
            image_files.simplejpeg = with_simplejpeg
            results["bookkeeping_share"][name] = round(bookkeeping_share(shards), 4)
            print(
                name, results["images_per_cpu_second"][name], results["bookkeeping_share"][name], flush=True
            )
        points = memory_over_samples(Path(temporary) / "small")
    results["memory_mb"] = [[seen, round(used, 1)] for seen, used in points]
    (ROOT / "benchmarks/results/data.json").write_text(json.dumps(results, indent=1) + "\n")
    draw_memory(points, ROOT / "docs/images/data-memory.png")
    write_page(results)


def compare_one(shards: list[str]) -> float:
    """packvit's images per second of CPU time, median over rounds."""
    return round(statistics.median(rate(packvit_images(shards), SECONDS / ROUNDS) for _ in range(ROUNDS)), 1)


def write_page(results: dict) -> None:
    speeds, plain = results["images_per_cpu_second"], "webdataset + Pillow"
    lines = [
        "| images per second of one core | " + " | ".join(speeds) + " |",
        "| --- |" + " ---: |" * len(speeds),
    ]
    for name in next(iter(speeds.values())):
        cells = (f"{row[name]:,.0f} ({row[name] / row[plain]:.1f}x)" for row in speeds.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(
        "| packer and bookkeeping, share of a worker's time | "
        + " | ".join(f"{share:.1%}" for share in results["bookkeeping_share"].values())
        + " |"
    )
    replace_section("speed", lines, ROOT / "docs/data.md")
    found = results["grey_levels"].values()
    rows = [
        [words] + [f"{row[name][0]:.2f} ({row[name][1]})" for row in found]
        for name, words in DISTANCES.items()
    ]
    replace_section("filters", table(["grey levels, mean (largest)", *speeds], rows), ROOT / "docs/data.md")
    start = results["memory_mb"][len(results["memory_mb"]) // 10][1]
    end = results["memory_mb"][-1][1]
    samples = f"{MEMORY_SAMPLES:,}"
    text = f"Over {samples} samples: {start:.0f} MB after a tenth of them, {end:.0f} MB at the end."
    replace_section("memory", [text], ROOT / "docs/data.md")


if __name__ == "__main__":
    main()
