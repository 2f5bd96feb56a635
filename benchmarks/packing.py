"""Compare the packers: padding by lookahead and sequence length, time an item, balance between ranks.

`.venv/bin/python benchmarks/packing.py` (a few minutes on one core) writes benchmarks/results/packing.json,
docs/images/packing.png and the tables of docs/packing.md. Views are drawn by the function that training uses.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gpu.results import replace_section
from packvit.analyze.analysis import draw_tokens
from packvit.analyze.cost import CostConfig, Work
from packvit.analyze.measure import measure
from packvit.packing import Dealer, DropConfig, ResolutionConfig, ViewsConfig, make_packer
from packvit.packing.packers.config import PACKERS
from packvit.packing.packers.dealer import attention_cost
from packvit.packing.packers.packer import Contents

ROOT = Path(__file__).parent.parent
SEED, VIEWS, STREAM_VIEWS = 0, 100_000, 100_000
LOOKAHEADS = (16, 64, 256, 1024)
REPEATS = 5  # of every timing; the median counts
ROWS = 8  # of a batch
FLEXIVIT = (48, 40, 30, 24, 20, 16, 15, 12, 10, 8)
DROP = DropConfig("beta", 0.5, 0.9)
NAVIT = ViewsConfig(resolution=ResolutionConfig(64, 256, "uniform"), drop=DROP)
ANY_PATCH = ViewsConfig(FLEXIVIT, resolution=ResolutionConfig(160, 320, "uniform"))
ANY_PATCH_DROP = ViewsConfig(FLEXIVIT, resolution=ResolutionConfig(160, 320, "uniform"), drop=DROP)
# name: (views, aspect ratios, sequence lengths, of which the first is the one of the bar; bar)
MIXES: dict[str, tuple[ViewsConfig, str, tuple[int, ...], float | None]] = {
    "NaViT, square": (NAVIT, "square", (256, 512, 1024, 2048), 0.001),
    "NaViT, photos": (NAVIT, "photos", (256, 512, 1024, 2048), 0.001),
    "any patch, square": (ANY_PATCH, "square", (2048, 4096, 8192), 0.0035),
    "any patch, photos": (ANY_PATCH, "photos", (2048, 4096, 8192), 0.0035),
    "any patch, square, drop": (ANY_PATCH_DROP, "square", (2048, 4096, 8192), 0.0035),
}
COLOURS = {
    "oldest_first": "#0072B2",
    "best_fit": "#D55E00",
    "first_fit": "#E69F00",
    "best_fit_decreasing": "#009E73",
    "next_fit": "#999999",
}


def draw_lengths(views: ViewsConfig, aspects: str, seq_len: int, seed: int, count: int = VIEWS) -> np.ndarray:
    """Token counts, int32 [count], of views of square images or photographs; longer than S are shrunk."""
    rng = np.random.default_rng(seed)
    # About the spread of ImageNet's aspect ratios: most between 2:3 and 3:2, a little more wide than tall.
    ratio = np.exp(rng.normal(0.15, 0.3, count)) if aspects == "photos" else np.ones(count)
    sizes = np.stack([400 / np.sqrt(ratio), 400 * np.sqrt(ratio)], 1).round().astype(int)
    return draw_tokens(sizes, views, (seq_len,), seed)[1]


def group_in_order(lengths: np.ndarray, seq_len: int) -> float:
    """Padding of what vit-pytorch's NaViT does with a list of images.

    It groups images in the order of arrival until the next would exceed the maximum, and pads the groups of a
    batch to the longest of them; here `ROWS` groups are a batch.
    """
    used = [0]
    for length in lengths.tolist():
        if used[-1] + length > seq_len:
            used.append(0)
        used[-1] += length
    batches = [used[start : start + ROWS] for start in range(0, len(used), ROWS)]
    return 1 - sum(used) / sum(len(batch) * max(batch) for batch in batches)


def compare(
    lengths: np.ndarray, seq_len: int, algorithms: Iterable[str], lookahead: int = 256, repeats: int = 1
) -> list[dict]:
    """A row of results for each algorithm."""
    rows = []
    for algorithm in algorithms:
        runs = [measure(lengths, seq_len, algorithm, lookahead) for _ in range(repeats)]
        packed = runs[0]
        rows.append(
            {
                "seq_len": seq_len,
                "algorithm": algorithm,
                "lookahead": lookahead,
                "padding_fraction": packed.padding_fraction,
                "waste_fraction": packed.waste,
                "images_per_sequence": packed.images_per_sequence,
                "fill_drop": packed.fill_drop,
                "fill_worst": packed.fill_worst,
                "fill_images": packed.fill_images,
                "microseconds_per_item": statistics.median(run.microseconds for run in runs),
            }
        )
    return rows


def spread(streams: list[list[Contents[None]]], seq_len: int, balance: int) -> dict[str, Any]:
    """(most - least) / mean over 2, 4, 8 ranks of tokens, squared lengths and ViT-B's FLOPs; mean over steps.

    Each of the 8 streams deals batches of the sequences it packed, as in training; rank r trains on stream r.
    """
    tables = []
    for rows in streams:
        dealer = Dealer(seq_len, ROWS, balance)
        batches = []
        for row in rows:
            dealer.add([row])
            while (batch := dealer.deal()) is not None:
                tokens = sum(length for row in batch for _, length in row)
                squares = sum(map(attention_cost, batch))
                batches.append((tokens, squares, CostConfig().flops(Work(ROWS * seq_len, squares))))
        tables.append(batches)
    steps = min(map(len, tables))
    table = np.array([batches[:steps] for batches in tables], float)  # [streams, steps, 3]
    result: dict[str, Any] = {"balance": balance, "steps": steps}
    for ranks in (2, 4, 8):
        groups = table.reshape(len(tables) // ranks, ranks, steps, 3)
        spreads = np.ptp(groups, axis=1) / groups.mean(1)  # [groups, steps, 3]
        tokens, squares, flops = spreads.mean((0, 1))
        late = spreads[:, steps // 2 :, 1].mean()
        result[f"{ranks}_ranks"] = {"tokens": tokens, "squares": squares, "late": late, "flops": flops}
    return result


def run_mix(views: ViewsConfig, aspects: str, seq_lens: tuple[int, ...], bar: float | None) -> dict[str, Any]:
    first = seq_lens[0]
    lengths = draw_lengths(views, aspects, first, SEED)
    rows = compare(lengths, first, PACKERS, repeats=REPEATS)
    for lookahead in LOOKAHEADS:
        if lookahead != 256:
            rows += compare(lengths, first, [name for name in PACKERS if name != "next_fit"], lookahead)
    for seq_len in seq_lens[1:]:
        rows += compare(lengths, seq_len, PACKERS)
    streams = []
    for stream in range(8):
        packer = make_packer(first)
        drawn = draw_lengths(views, aspects, first, 1000 + stream, STREAM_VIEWS).tolist()
        streams.append([row for length in drawn for row in packer.add(None, length)])
    oldest_first = next(row for row in rows if row["algorithm"] == "oldest_first")
    return {
        "bar": bar,
        "bar_held": bar is None or oldest_first["padding_fraction"] <= bar,
        "mean_tokens": float(lengths.mean()),
        "rows": rows,
        "group_in_order": {seq_len: group_in_order(lengths, seq_len) for seq_len in seq_lens},
        "spread": [spread(streams, first, balance) for balance in (1, 4, 16)],
    }


def find(mix: dict, seq_len: int, algorithm: str, lookahead: int = 256) -> dict:
    wanted = {"seq_len": seq_len, "algorithm": algorithm, "lookahead": lookahead}
    return next(row for row in mix["rows"] if wanted.items() <= row.items())


def draw(mixes: dict[str, dict]) -> Figure:
    """Padding by lookahead and by S, log scales; a row for each of two mixes."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    for place, name in enumerate(("NaViT, square", "any patch, square")):
        mix, seq_lens = mixes[name], MIXES[name][2]
        by_lookahead, by_length = (
            figure.add_subplot(2, 2, 2 * place + 1),
            figure.add_subplot(2, 2, 2 * place + 2),
        )
        for algorithm, colour in COLOURS.items():
            style = {"color": colour, "label": algorithm, "marker": "o", "markersize": 4}
            if algorithm == "next_fit":
                padding = find(mix, seq_lens[0], algorithm)["padding_fraction"]
                by_lookahead.axhline(100 * padding, color=colour, label=algorithm)
            else:
                found = [find(mix, seq_lens[0], algorithm, lookahead) for lookahead in LOOKAHEADS]
                by_lookahead.plot(LOOKAHEADS, [100 * row["padding_fraction"] for row in found], **style)
            found = [find(mix, seq_len, algorithm) for seq_len in seq_lens]
            by_length.plot(seq_lens, [100 * row["padding_fraction"] for row in found], **style)
        grouped = [100 * mix["group_in_order"][seq_len] for seq_len in seq_lens]
        by_lookahead.axhline(
            grouped[0], color="black", linestyle=":", label="in order, padded to the longest"
        )
        by_length.plot(seq_lens, grouped, color="black", linestyle=":")
        for axes, values, what in (
            (by_lookahead, LOOKAHEADS, f"lookahead, S = {seq_lens[0]}"),
            (by_length, seq_lens, "sequence length S, lookahead 256"),
        ):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(values, [str(value) for value in values])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
            axes.grid(alpha=0.25)
            axes.set_xlabel(what)
            axes.set_ylabel("padding")
            axes.set_title(name, loc="left", size=10)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def tables(mixes: dict[str, dict]) -> dict[str, str]:
    """The tables of docs/packing.md, by the name of their marker."""
    names = {name: f"{name}, S = {MIXES[name][2][0]}" for name in mixes}
    head = ["| | " + " | ".join(names.values()) + " | µs an item |", "| --- |" + " ---: |" * (len(mixes) + 1)]
    padding = list(head)
    for algorithm in PACKERS:
        found = [find(mix, MIXES[name][2][0], algorithm) for name, mix in mixes.items()]
        slowest = max(row["microseconds_per_item"] for row in found)
        cells = [f"{row['padding_fraction']:.3%}" for row in found]
        padding.append(f"| `{algorithm}` | " + " | ".join(cells) + f" | {slowest:.1f} |")
    grouped = [f"{mix['group_in_order'][MIXES[name][2][0]]:.1%}" for name, mix in mixes.items()]
    padding.append("| in order, padded to the longest of 8 | " + " | ".join(grouped) + " | |")
    cuts = ["| mix | images cut | tokens lost, mean | worst image |", "| --- | ---: | ---: | ---: |"]
    for name, mix in mixes.items():
        row = find(mix, MIXES[name][2][0], "exact_fill")
        cuts.append(
            f"| {names[name]} | {row['fill_images']:.2%} | {row['fill_drop']:.4%} | {row['fill_worst']:.1%} |"
        )
    balance = ["| mix | `balance` | 2 ranks | 4 ranks | 8 ranks | FLOPs |", "| --- |" + " ---: |" * 5]
    for name, mix in mixes.items():
        for row in mix["spread"]:
            cells = [f"{row[f'{ranks}_ranks']['late']:.1%}" for ranks in (2, 4, 8)]
            cells.append(f"{row['8_ranks']['flops']:.2%}")
            balance.append(f"| {names[name]} | {row['balance']} | " + " | ".join(cells) + " |")
    return {
        key: "\n".join(value) for key, value in (("padding", padding), ("cuts", cuts), ("balance", balance))
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    mixes = {}
    for name, mix in MIXES.items():
        mixes[name] = run_mix(*mix)
        row = find(mixes[name], mix[2][0], "oldest_first")
        print(f"{name}: oldest_first pads {row['padding_fraction']:.4%}, held: {mixes[name]['bar_held']}")
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    report = {
        "command": ".venv/bin/python benchmarks/packing.py",
        "hardware": f"{cpu[0].split(': ')[1]}, one core of {len(cpu)}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("packvit", "numpy")},
        "seed": SEED,
        "views": VIEWS,
        "views_of_a_stream": STREAM_VIEWS,
        "repeats": REPEATS,
        "mixes": mixes,
    }
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "packing.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "images").mkdir(exist_ok=True)
    draw(mixes).savefig(ROOT / "docs" / "images" / "packing.png", dpi=150)
    for name, text in tables(mixes).items():
        replace_section(name, [text], ROOT / "docs/packing.md")


if __name__ == "__main__":
    main()
