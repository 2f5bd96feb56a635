"""The output of an analysis: a printed table, analysis.json, analysis.csv."""

import csv
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from packvit.analyze.analysis import Analysis, AnalysisConfig, histogram
from packvit.analyze.page import describe
from packvit.analyze.sizes import Sizes
from packvit.packing import ViewsConfig


def print_sizes(sizes: Sizes, source: str, seconds: float) -> None:
    """How many sizes were found, how fast, and which could not be used."""
    count = len(sizes.values) + sizes.bad
    print(f"{len(sizes.values):,} sizes from {source} in {seconds:.1f} s ({count / seconds:,.0f}/s)")
    for note in sizes.notes:
        print(f"note: {note}")
    if sizes.bad:
        print(f"{sizes.bad:,} bad sizes left out{', the first' if sizes.bad > len(sizes.examples) else ''}:")
        print("\n".join(f"  {example}" for example in sizes.examples))


def print_table(console: Console, name: str, result: Analysis) -> None:
    """All results of one way to draw views, the recommended one in bold."""
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


def make_report(
    source: str,
    sizes: Sizes,
    samplers: dict[str, ViewsConfig],
    config: AnalysisConfig,
    results: dict[str, Analysis],
) -> dict[str, Any]:
    """The content of analysis.json."""
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


def write_files(out: Path, report: dict[str, Any]) -> None:
    """analysis.json and analysis.csv in `out`, which is created if needed."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "analysis.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    rows = [{"sampler": s["name"], **row} for s in report["samplers"] for row in s["rows"]]
    with (out / "analysis.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
