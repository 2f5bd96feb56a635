"""Whether new results are worse than stored ones, and which goals they reach. Pure functions on numbers."""

from collections.abc import Mapping
from typing import Any

LOSS = 0.05  # share of the stored rate that a new one may lack
GROWING = {  # of the dry run: what must not grow, and by which share it may
    "waits": 0.0,
    "copies_to_device": 0.0,
    "copies_to_host": 0.0,
    "bytes_to_device": 0.005,
    "kernels": 0.0,
    "gb": 0.005,
    "recompiles": 0.0,
    "limit_reached": 0.0,
    "number": 0.0,
    "mb": 0.005,
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with names joined by " / "."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        whole = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{whole} / ")
        else:
            flat[whole] = value
    return flat


def errors(results: Mapping[str, Any]) -> list[str]:
    """A sentence for every `error` in results."""
    flat = flatten(results)
    return [f"{name.removesuffix(' / error')}: {flat[name]}" for name in flat if name.endswith(" / error")]


def grown(new: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """A sentence for every number of GROWING that is larger than it was; new names count as unchanged."""
    before, found = flatten(stored), []
    for name, value in flatten(new).items():
        share = GROWING.get(name.split(" / ")[-1])
        if share is not None and name in before and value > before[name] * (1 + share):
            found.append(f"{name} was {before[name]}, is {value}")
    return found


def slower(new: Mapping[str, float], stored: Mapping[str, float]) -> list[str]:
    """A sentence for every rate, such as TFLOP/s, that lacks more than LOSS of the stored one."""
    return [
        f"{name} was {stored[name]:.4g} {new[name] / stored[name] - 1:+.1%}"
        for name in new
        if name in stored and new[name] < stored[name] * (1 - LOSS)
    ]


def best(new: Mapping[str, float], stored: Mapping[str, float]) -> dict[str, float]:
    """The larger of both rates for every name."""
    return {name: max(new.get(name, 0.0), stored.get(name, 0.0)) for name in {**stored, **new}}


def rates(parts: Mapping[str, Any]) -> dict[str, float]:
    """{cell of the table: TFLOP/s} of what the part `mfu` measured."""
    cells = parts.get("mfu", {}).get("result", {})
    return {name: cell["tflops"] for name, cell in cells.items() if "tflops" in cell}


def share(parts: Mapping[str, Any], cell: str) -> float | None:
    """MFU of a cell against the measured peak of matrix products, or None without both."""
    peak = parts.get("peaks", {}).get("result", {}).get("matmul_tflops")
    rate = rates(parts).get(cell)
    return rate / peak if rate and peak else None


def goals(parts: Mapping[str, Any]) -> list[tuple[str, float | None, float, bool]]:
    """(name, value, goal, whether it is reached) of every goal; set for an H200, shown for any GPU."""

    def found(part: str, name: str) -> float | None:
        return parts.get(part, {}).get("result", {}).get(name)

    at_least = [
        (
            "ViT-B, compiled, 65,536 tokens: share of the measured peak",
            share(parts, "B, 65536, compiled"),
            0.60,
        ),
        (
            "ViT-L, compiled, 65,536 tokens: share of the measured peak",
            share(parts, "L, 65536, compiled"),
            0.65,
        ),
        ("tokens/s over those of a ViT on images of one size", found("peers", "over_fixed"), 0.95),
        ("images/s over those of timm's NaFlexViT", found("peers", "over_naflex"), 2.0),
    ]
    at_most = [
        ("time of ten patch sizes over that of one", found("patch_sizes", "ten_over_one"), 1.03),
        ("share of the time that training waits for data", found("training", "data_wait"), 0.02),
    ]
    lines = [(name, value, goal, value is not None and value >= goal) for name, value, goal in at_least]
    return lines + [(name, value, goal, value is not None and value <= goal) for name, value, goal in at_most]
