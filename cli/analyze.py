"""`packvit analyze`: how well a data set's views pack, and which sequence length to use.

Sizes come from shards' headers or from a file; views are drawn and packed as in training.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Literal

from rich.console import Console

from packvit.analyze.analysis import NATIVE, AnalysisConfig, analyze
from packvit.analyze.cost import CostConfig
from packvit.analyze.page import describe, write_page
from packvit.analyze.report import make_report, print_sizes, print_table, write_files
from packvit.analyze.sizes import Sizes, read_sizes_file, shard_sizes
from packvit.cli.options import read_options
from packvit.common.engine.engine import Engine, EngineConfig
from packvit.common.engine.make import EngineFlags, make_engine
from packvit.common.files import check_writable
from packvit.data import FetchConfig, expand_shards, is_remote
from packvit.packing import ViewsConfig
from packvit.packing.packers.config import PACKERS
from packvit.train.recipes.find import find_recipe

ENOUGH_VIEWS = 50_000
MOST_WORKERS = 1024
WIDTH = 120  # characters of the table where no terminal says its own


@dataclass(frozen=True)
class Analyze:
    """Measure how well views of a data set pack, and recommend a sequence length.

    Args:
        shards: webdataset shards: files, patterns or folders; only headers are read.
        sizes_file: .csv, .parquet or .npy file of native heights and widths, instead of shards.
        seq_lens: sequence lengths S to try.
        algorithms: packers to try.
        lookaheads: numbers of waiting views that a packer may choose among.
        views: how views are drawn.
        recipes: recipes or config.yaml files whose views are tried instead of --views.*.
        resolution: drawn, as --views.* specify, or native, as large as the images are stored; or both.
        model: the model whose FLOPs are estimated.
        batch_images: images in a padded batch, with which packing is compared.
        epochs: number of views drawn of every image; 0: enough for 50,000 views, so that the last, half-empty
            sequences matter little.
        limit: maximum number of images; shards are then read in an order shuffled by the seed.
        workers: number of processes; 0: one for each CPU.
        seed: seed of the views and of the images' order.
        out: folder for analysis.json, analysis.csv and analysis.html.
        fetch: how remote and gzipped shards are fetched.
        engine: see its flags.
    """

    shards: tuple[str, ...] = ()
    sizes_file: Path | None = None
    seq_lens: tuple[int, ...] = (256, 512, 1024, 2048)
    algorithms: tuple[str, ...] = tuple(PACKERS)
    lookaheads: tuple[int, ...] = (256,)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    recipes: tuple[str, ...] = ()
    resolution: tuple[Literal["drawn", "native"], ...] = ("drawn",)
    model: CostConfig = field(default_factory=CostConfig)
    batch_images: int = 128
    epochs: int = 0
    limit: int | None = None
    workers: int = 0
    seed: int = 0
    out: Path = Path("packing-analysis")
    fetch: FetchConfig = field(default_factory=FetchConfig)
    engine: EngineFlags = field(default_factory=EngineConfig)


def main(arguments: Sequence[str]) -> None:
    """Analyse, print, write."""
    options = read_options(Analyze, "packvit analyze", arguments)
    check_values(options)
    config = AnalysisConfig(
        options.seq_lens,
        options.algorithms,
        options.lookaheads,
        options.model,
        options.batch_images,
        options.epochs or 1,
        options.seed,
    )
    samplers = choose_samplers(options)
    source = str(options.sizes_file or " ".join(options.shards))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    with make_engine(options.engine, console, options.workers) as engine:
        began = time.perf_counter()
        sizes = find_sizes(options, engine)
        sizes.require_some(source)
        print_sizes(sizes, source, time.perf_counter() - began)
        config = replace(config, epochs=options.epochs or -(-ENOUGH_VIEWS // len(sizes.values)))
        results = {name: analyze(sizes.values, shown, config, engine.run) for name, shown in samplers.items()}
    for name, result in results.items():
        print_table(console, name, result)
    print(f"\nCost model: {options.model}.")
    for name, result in results.items():
        print(f"\n{name}: " + " ".join(describe(result)))
    report = make_report(source, sizes, samplers, config, results)
    out = options.out
    write_files(out, report)
    if message := write_page(out / "analysis.html", report):
        print(message)
    print(f"\nWrote {out}/analysis.html, analysis.json and analysis.csv")


def check_values(options: Analyze) -> None:
    """Refuse what cannot be analysed, before any work is done.

    Raises:
        ValueError: names the flag.
    """
    if bool(options.shards) == (options.sizes_file is not None):
        raise ValueError("name either --shards or --sizes-file")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit={options.limit} must be at least 1")
    if options.workers < 0 or options.epochs < 0:
        raise ValueError(f"workers={options.workers} and epochs={options.epochs} must not be negative")
    if options.workers > MOST_WORKERS:
        raise ValueError(f"workers={options.workers} must be at most {MOST_WORKERS}")
    check_writable(options.out)
    if not options.resolution:
        raise ValueError("resolution needs at least one value")


def choose_samplers(options: Analyze) -> dict[str, ViewsConfig]:
    """The ways to draw views that are tried, by name."""
    drawn = [(name, find_recipe(name).views) for name in options.recipes] or [("", options.views)]
    samplers = {}
    for name, views in drawn:
        for kind in options.resolution:
            shown = views if kind == "drawn" else replace(views, resolution=NATIVE)
            samplers[f"{name} {kind}".strip()] = shown
    return samplers


def find_sizes(options: Analyze, engine: Engine) -> Sizes:
    """The native sizes, from a file or from the shards' headers."""
    limit = options.limit
    if options.sizes_file:
        return read_sizes_file(options.sizes_file, limit)
    paths = expand_shards(options.shards)
    if limit is not None:
        Random(options.seed).shuffle(paths)
    # Few shards are shared among the processes, each of which takes some of the members; but each would have
    # to read all headers of a remote one.
    alone = limit is not None or len(paths) >= 2 * engine.workers or any(map(is_remote, paths))
    parts = 1 if alone else engine.workers
    work = [(path, part, parts) for path in paths for part in range(parts)]
    found = engine.run("reading headers", partial(shard_sizes, fetch=options.fetch), work)
    if limit is None:
        return Sizes.join(found)
    taken, count = [], 0
    while count < limit and (sizes := next(found, None)) is not None:
        taken.append(sizes)
        count += len(sizes.values) + sizes.bad
    whole = Sizes.join(taken)
    whole.values = whole.values[:limit]
    return whole
