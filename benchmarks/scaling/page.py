"""The tables of docs/scale.md."""

from typing import Any

from gpu.results import ROOT, replace_section, table

PAGE = ROOT / "docs/scale.md"


def write_page(results: dict[str, Any]) -> None:
    """Write the table of each part that has results."""
    for name, lines_of in TABLES.items():
        if all(part in results for part in NEEDED[name]):
            replace_section(name, lines_of(results), PAGE)


def start_lines(results: dict[str, Any]) -> list[str]:
    """Start-up by number of shards and ranks."""
    rows = []
    for number, by_ranks in results["start"].items():
        for ranks, found in by_ranks.items():
            rows.append(
                [
                    f"{int(number):,} shards, ranks: {ranks}",
                    f"{found['seconds']:.1f}",
                    f"{found['mb'] - found['imported_mb']:.0f}",
                    f"{found['mb']:.0f}",
                    f"{found['worker_mb']:.0f}",
                ]
            )
    header = ["", "s to the first batch", "MB above imports", "MB of a rank", "MB of its worker"]
    return [*table(header, rows), "", measured(results)]


def looks_lines(results: dict[str, Any]) -> list[str]:
    """Looks at files by number of shards and their naming."""
    header = ["most system calls of a process that look at a file of the folder", "folder", "braces"]
    rows = [
        [f"{int(number):,} shards", *(f"{found[way]:,}" for way in ("folder", "braces"))]
        for number, found in results["looks"].items()
    ]
    return table(header, rows)


def command_lines(results: dict[str, Any]) -> list[str]:
    """Commands over all shards."""
    rows = [
        [
            name,
            f"{found['seconds']:.0f}",
            f"{1000 * found['cpu_seconds'] / results['shards']:.1f}",
            f"{found['mb']:.0f}",
        ]
        for name, found in (
            ("`packvit shards index`, nothing cached", results["index"]),
            ("`packvit analyze`, indices cached", results["analyze"]),
        )
    ]
    header = [f"{results['shards']:,} shards", "s", "ms of CPU a shard", "MB of the largest process"]
    return table(header, rows)


def order_lines(results: dict[str, Any]) -> list[str]:
    """The order of an epoch."""
    rows = [
        [f"{int(number):,} shards", f"{found['seconds']:.2f}", f"{found['mb']:.1f}"]
        for number, found in results["order"].items()
    ]
    return table(["order of an epoch, 64 streams", "s", "MB"], rows)


def state_lines(results: dict[str, Any]) -> list[str]:
    """The state of a stream."""
    rows = [
        [
            f"`{name}`: {found['sequences']} sequences of {found['seq_len']}",
            f"{found['images']:,}",
            f"{found['bytes'] / 1000:.1f}",
            f"{found['plain_bytes'] / 1000:.0f}",
        ]
        for name, found in results["state"].items()
    ]
    header = ["simulated: what waits in one stream", "images", "kB", "kB as plain lists"]
    return table(header, rows)


def balance_lines(results: dict[str, Any]) -> list[str]:
    """max / mean by rule and ranks."""
    lines: list[str] = []
    for name, found in results["balance"].items():
        ranks = sorted({int(number) for row in found["rows"].values() for number in row})
        rows = [
            [rule, *(over_mean(row[str(number)]) for number in ranks)] for rule, row in found["rows"].items()
        ]
        title = f"`{name}`, {found['sequences']} sequences of {found['seq_len']} on each rank"
        lines += [*table([title, *(f"{number:,} ranks" for number in ranks)], rows), ""]
    return lines[:-1]


def over_mean(found: dict[str, float]) -> str:
    """max / mean in the mean of the steps, and in the worst."""
    return f"{found['mean']:.4f} ({found['worst']:.4f})"


def cores_lines(results: dict[str, Any]) -> list[str]:
    """Cores for a GPU."""
    sizes = list(next(iter(results["cores"].values()))["cores"])
    rows = [
        [
            f"`{name}`, {found['model']}",
            f"{found['tokens']:.0f}",
            f"{found['images_per_s']:,.0f}",
            *(f"{found['cores'][size]:.0f}" for size in sizes),
        ]
        for name, found in results["cores"].items()
    ]
    header = ["predicted", "tokens an image", "images/s of an H200", *(f"cores, {size}" for size in sizes)]
    return table(header, rows)


def measured(results: dict[str, Any]) -> str:
    """Where it was measured."""
    return f"Measured: `{results['command']}`, {results['hardware']}, Python {results['python']}."


TABLES = {
    "start": start_lines,
    "looks": looks_lines,
    "commands": command_lines,
    "order": order_lines,
    "state": state_lines,
    "balance": balance_lines,
    "cores": cores_lines,
}
NEEDED = {name: ("index", "analyze") if name == "commands" else (name,) for name in TABLES}
