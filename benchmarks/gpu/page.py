"""The tables of docs/gpu.md about real GPUs, from all benchmarks/results/gpu-*.json."""

from pathlib import Path
from typing import Any

from gpu.compare import goals, share
from gpu.results import load, replace_section, table


def number(value: float | None, digits: int = 1) -> str:
    """A number as text, a dash for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def result_of(results: dict[str, Any], part: str) -> dict[str, Any]:
    """What a part measured; empty where it did not."""
    return results["parts"].get(part, {}).get("result", {})


def goal_lines(results: dict[str, Any]) -> list[str]:
    """The table of goals, which are those for an H200."""
    rows = [
        [name, number(value, 3), f"{goal:.2f}", "yes" if reached else "no"]
        for name, value, goal, reached in goals(results["parts"])
    ]
    return table(["goal", "measured", "goal", "reached"], rows)


def mfu_lines(results: dict[str, Any]) -> list[str]:
    """The table of whole training steps."""
    sheet = result_of(results, "peaks").get("data_sheet_tflops")
    rows = []
    for name, cell in result_of(results, "mfu").items():
        if "tflops" not in cell:
            rows.append([name, cell.get("not_measured", "-"), "", "", "", ""])
            continue
        measured = share(results["parts"], name)
        rows.append(
            [
                name,
                number(cell["ms"]),
                number(cell["tokens_per_s"], 0),
                number(measured and 100 * measured),
                number(sheet and 100 * cell["tflops"] / sheet),
                number(cell["gb"]),
            ]
        )
    header = ["ViT, tokens, mode", "ms a step", "tokens/s", "% of measured peak", "% of data sheet", "GB"]
    return table(header, rows)


def attention_lines(results: dict[str, Any]) -> list[str]:
    """The table of backends by the length of segments."""
    rows = []
    for name, cell in result_of(results, "attention").items():
        if "ms" in cell:
            rows.append([name, number(cell["ms"], 2), number(cell["tflops"], 0), f"{cell['deviation']:.1e}"])
        else:
            rows.append([name, cell.get("not_measured") or cell["error"], "", ""])
    return table(["backend, length", "ms", "TFLOP/s", "deviation"], rows)


def state_lines(results: dict[str, Any]) -> list[str]:
    """The table of parts: when, how long, how each ended."""
    rows = [
        [name, part["status"], number(part["seconds"], 0), part["commit"]]
        for name, part in results["parts"].items()
    ]
    return table(["part", "status", "seconds", "commit"], rows)


def lines_of(results: dict[str, Any]) -> list[str]:
    """All that the page says of one device."""
    peaks, packages = result_of(results, "peaks"), result_of(results, "versions").get("packages", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version != "-")
    lines = [
        f"### {results['device']}",
        "",
        f"{versions}. Matrix products: {number(peaks.get('matmul_tflops'))} TFLOP/s measured, "
        f"{number(peaks.get('data_sheet_tflops'))} by the data sheet; copies: "
        f"{number(peaks.get('copy_tb_per_s'), 2)} TB/s.",
    ]
    for part in (goal_lines, mfu_lines, attention_lines, state_lines):
        lines += ["", *part(results)]
    peers = {name: result_of(results, "peers").get(name, {}) for name in ("packvit", "one_size", "naflex")}
    settings = [f"{name}: {found['setting']}" for name, found in peers.items() if "setting" in found]
    if settings:
        lines += ["", f"Best settings found: {'; '.join(settings)}."]
    return lines


def write_page(folder: Path, show: bool) -> None:
    """Write the section of the page from the results in `folder`; with `show` print it instead."""
    files = [path for path in sorted(folder.glob("gpu-*.json")) if path.stem != "gpu-dry"]
    lines = [line for path in files for line in ["", *lines_of(load(path))]][1:]
    if show:
        print("\n".join(lines))
    else:
        replace_section("gpu", lines)
