"""`packvit analyze`: how well a data set's views pack, and which sequence length to take.

Sizes come from shards' headers or from a file; views are drawn and packed as training does it. Writes
analysis.json, analysis.csv and analysis.html to a folder and a table to the terminal.
"""

import csv
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from packvit.data import expand_shards
from packvit.data.sizes import Sizes, read_sizes_file, shard_sizes
from packvit.packing import ViewsConfig
from packvit.packing.analyze import NATIVE, Analysis, AnalysisConfig, analyze, histogram
from packvit.packing.cost import CostConfig
from packvit.packing.policy import PACKERS
from packvit.train.analyze_page import describe, write_page
from packvit.train.jobs import Jobs
from packvit.train.recipes import find_recipe

ENOUGH_VIEWS = 50_000
VIEWS, MODEL = ViewsConfig(), CostConfig()
WIDTH = 120  # characters of the table where no terminal says its own


def analyze_command(
    shards: tuple[str, ...] = (),
    sizes_file: Path | None = None,
    seq_lens: tuple[int, ...] = (256, 512, 1024, 2048),
    algorithms: tuple[str, ...] = tuple(PACKERS),
    lookaheads: tuple[int, ...] = (256,),
    views: ViewsConfig = VIEWS,
    recipes: tuple[str, ...] = (),
    resolution: tuple[Literal["drawn", "native"], ...] = ("drawn",),
    model: CostConfig = MODEL,
    batch_images: int = 128,
    epochs: int = 0,
    limit: int | None = None,
    workers: int = 0,
    seed: int = 0,
    out: Path = Path("packing-analysis"),
) -> None:
    """Measure how well views of a data set pack, and recommend a sequence length.

    Args:
        shards: webdataset shards: files, patterns or folders; only headers are read.
        sizes_file: .csv, .parquet or .npy of native heights and widths, instead of shards.
        seq_lens: sequence lengths S to try.
        algorithms: packers to try.
        lookaheads: numbers of waiting views that a packer may choose among.
        views: how views are drawn.
        recipes: recipes or config.yaml files whose views are tried instead of --views.*.
        resolution: drawn, as the views say, or native, as large as the images are stored; or both.
        model: the model whose FLOPs are estimated.
        batch_images: images in a batch that is padded, where packing is compared with padding.
        epochs: views drawn of every image; 0: as many as make 50,000 views, so that the last, half-empty
            sequences weigh little.
        limit: images at most; shards are then taken in an order shuffled by the seed.
        workers: processes; 0: one for each CPU.
        seed: of the views and of the images' order.
        out: folder for analysis.json, analysis.csv and analysis.html.
    """
    if bool(shards) == (sizes_file is not None):
        raise ValueError("name either --shards or --sizes-file")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    if workers < 0 or epochs < 0:
        raise ValueError(f"workers={workers} and epochs={epochs} must not be negative")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, not a folder")
    config = AnalysisConfig(seq_lens, algorithms, lookaheads, model, batch_images, epochs or 1, seed)
    samplers = _samplers(views, recipes, resolution)
    source = str(sizes_file or " ".join(shards))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with Jobs(workers or cpus, console) as jobs:
        began = time.perf_counter()
        sizes = read_sizes_file(sizes_file, limit) if sizes_file else _read_shards(shards, limit, seed, jobs)
        sizes.require_some(source)
        _print_sizes(sizes, source, time.perf_counter() - began)
        count = len(sizes.values)
        config = replace(config, epochs=epochs or -(-ENOUGH_VIEWS // count))
        results = {name: analyze(sizes.values, shown, config, jobs.run) for name, shown in samplers.items()}
    for name, result in results.items():
        _print_table(console, name, result)
    print(f"\nCost model: {model}.")
    for name, result in results.items():
        print(f"\n{name}: " + " ".join(describe(result)))
    report = _report(source, sizes, samplers, config, results)
    _write(out, report)
    if message := write_page(out / "analysis.html", report):
        print(message)
    print(f"\nWrote {out}/analysis.html, analysis.json and analysis.csv")


def _samplers(
    views: ViewsConfig, recipes: Sequence[str], resolution: Sequence[Literal["drawn", "native"]]
) -> dict[str, ViewsConfig]:
    if not resolution:
        raise ValueError("resolution needs at least one value")
    samplers = {}
    for name, drawn in [(name, find_recipe(name).views) for name in recipes] or [("", views)]:
        for kind in resolution:
            shown = drawn if kind == "drawn" else replace(drawn, resolution=NATIVE)
            samplers[f"{name} {kind}".strip()] = shown
    return samplers


def _read_shards(patterns: Sequence[str], limit: int | None, seed: int, jobs: Jobs) -> Sizes:
    paths = expand_shards(patterns)
    if limit is not None:
        Random(seed).shuffle(paths)
    # Few shards are shared among the processes, each of which takes every n-th member.
    parts = 1 if limit is not None or len(paths) >= 2 * jobs.workers else jobs.workers
    work = [(path, part, parts) for path in paths for part in range(parts)]
    found = jobs.run("reading headers", shard_sizes, work)
    if limit is None:
        return Sizes.join(found)
    taken, count = [], 0
    while count < limit and (sizes := next(found, None)) is not None:
        taken.append(sizes)
        count += len(sizes.values) + sizes.bad
    whole = Sizes.join(taken)
    whole.values = whole.values[:limit]
    return whole


def _print_sizes(sizes: Sizes, source: str, seconds: float) -> None:
    count = len(sizes.values) + sizes.bad
    print(f"{len(sizes.values):,} sizes from {source} in {seconds:.1f} s ({count / seconds:,.0f}/s)")
    for note in sizes.notes:
        print(f"note: {note}")
    if sizes.bad:
        print(f"{sizes.bad:,} bad sizes left out{', the first' if sizes.bad > len(sizes.examples) else ''}:")
        print("\n".join(f"  {example}" for example in sizes.examples))


def _print_table(console: Console, name: str, result: Analysis) -> None:
    title = f"Views {name}. Dense, longest, sorted: FLOPs of the other ways, over those of packing"
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    dropped = any(row["fill_drop"] for row in result.rows)
    columns = ["S", "algorithm", "lookahead", "padding", "images", "p1-p99", "GFLOP/image"]
    for column in (*columns, "dense", "longest", "sorted", "µs/item", *(["drop"] if dropped else [])):
        table.add_column(column, justify="left" if column == "algorithm" else "right", no_wrap=True)
    for row in result.rows:
        ratios = [row[f"gflops_{way}"] / row["gflops_packed"] for way in ("dense", "longest", "sorted")]
        cells = (
            f"{row['seq_len']}",
            row["algorithm"],
            f"{row['lookahead']}",
            f"{row['padding_fraction']:.2%}",
            f"{row['images_per_sequence']:.1f}",
            f"{row['images_per_sequence_p1']:.0f}-{row['images_per_sequence_p99']:.0f}",
            f"{row['gflops_packed']:.3g}",
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{row['microseconds_per_item']:.1f}",
            *([f"{row['fill_drop']:.2%}"] if dropped else []),
        )
        table.add_row(*cells, style="bold green" if row is result.choice else "")
    console.print()
    console.print(table)
    for seq_len, count in result.longer.items():
        if count:
            print(f"{count:,} of {len(result.tokens):,} views are longer than S = {seq_len}: they are shrunk")


def _report(
    source: str,
    sizes: Sizes,
    samplers: dict[str, ViewsConfig],
    config: AnalysisConfig,
    results: dict[str, Analysis],
) -> dict[str, Any]:
    """All of analysis.json."""
    settings = asdict(config)
    return {
        "packvit": version("packvit"),
        "source": source,
        "images": len(sizes.values),
        "views": len(sizes.values) * config.epochs,
        "bad_sizes": {"count": sizes.bad, "first": sizes.examples},
        "notes": sizes.notes,
        "settings": settings,
        "cost_model": str(config.model),
        "samplers": [
            {
                "name": name,
                "views": asdict(samplers[name]),
                "tokens": {
                    "mean": float(result.tokens.mean()),
                    **{f"p{q}": float(np.percentile(result.tokens, q)) for q in (1, 50, 99)},
                    "histogram": histogram(result.tokens),
                },
                "recommendation": {**result.choice, "words": list(describe(result))},
                "rows": result.rows,
            }
            for name, result in results.items()
        ],
    }


def _write(out: Path, report: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "analysis.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    rows = [{"sampler": s["name"], **row} for s in report["samplers"] for row in s["rows"]]
    with (out / "analysis.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
