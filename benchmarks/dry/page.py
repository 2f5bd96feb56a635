"""The tables of a dry run in docs/gpu.md."""

from typing import Any

from gpu.compare import errors
from gpu.results import table


def lookup(run: dict[str, Any], *names: str) -> str:
    """A number of a run as text; a dash where the run lacks it."""
    value: Any = run.get("results", {})
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        return "-"
    return f"{value:.1%}" if names[-1] == "mfu" else f"{value:,}"


def lines_of(runs: dict[str, dict[str, Any]]) -> list[str]:
    """The section's lines: a column for each run, by name."""
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("waits of the host in a step, largest of all variants", ("totals", "waits")),
        ("copies to the device in a step, one patch size", ("variants", "default", "copies_to_device")),
        (
            "copies to the device in a step, ten patch sizes",
            ("variants", "ten patch sizes", "copies_to_device"),
        ),
        ("copies to the host in a step, largest of all variants", ("totals", "copies_to_host")),
        ("graphs compiled again in ten batches", ("totals", "recompiles")),
    ]
    blocks = {
        name for run in runs.values() for name in run.get("results", {}).get("schedule", {}).get("block", {})
    }
    for name in sorted(blocks):
        way = ("schedule", "block", name)
        rows += [(f"ViT-B block, {name}: kernels", (*way, "kernels")), ("... GB", (*way, "gb"))]
        rows += [("... GB without matrix products", (*way, "gb_without_products"))]
    rows += [("all but the blocks: GB", ("schedule", "ends", "gb"))]
    rows += [("... operations", ("schedule", "ends", "kernels"))]
    for name in ("adamw, ddp", "muon, ddp", "adamw, fsdp", "muon, fsdp"):
        rows += [(f"messages a step on 8 ranks, {name}", ("collectives", name, "number"))]
        rows += [("... MB from each rank", ("collectives", name, "mb"))]
    for name in [f"{name}, {kind}" for name in ("B", "L") for kind in sorted(blocks)]:
        rows += [(f"ViT-{name} on an H200, predicted: ms a step", ("roofline", name, "ms_a_step"))]
        rows += [("... MFU", ("roofline", name, "mfu"))]
    header = ["", *(f"{name}, {run['commit']}" for name, run in runs.items())]
    lines = table(header, [[title, *(lookup(run, *names) for run in runs.values())] for title, names in rows])
    for name, run in runs.items():
        lines += ["", f"{name}: torch {run['torch']}, `make gpu-dry`, {run['seconds']:.0f} s."]
        lines += [f"- failed: {sentence}" for sentence in errors(run["results"])]
    return lines
