"""How often the compiler ran, and how often it gave up."""

from typing import Any

import torch
from torch._dynamo.utils import counters

from packvit.packing import PackedBatch

TEN = (48, 40, 30, 24, 20, 16, 15, 12, 10, 8)  # FlexiViT's patch sizes
# Of ten batches, in their order: one size, all, and changing parts of them.
SETS = (
    (16,),
    TEN,
    TEN[:5],
    TEN[5:],
    TEN[::2],
    TEN[1::2],
    (8, 48),
    (10, 16, 24),
    (12, 15, 20),
    (30, 40, 48),
)
WARM = 2  # batches after which everything has been compiled


def fresh() -> None:
    """Forget everything compiled, and all counts."""
    torch._dynamo.reset()
    counters.clear()


def graphs() -> int:
    """Graphs compiled since `fresh`, backward ones not counted."""
    return counters["stats"]["unique_graphs"]


def count_graphs(step: Any, batches: list[PackedBatch]) -> dict[str, Any]:
    """Call `step` with each batch; how many graphs there were after WARM batches and at the end.

    Args:
        step: takes one batch.
    """
    fresh()
    after = []
    for batch in batches:
        step(batch)
        after.append(graphs())
    return {
        "graphs": after,
        "recompiles": after[-1] - after[WARM - 1],
        "limit_reached": sum(number for name, number in counters["frames"].items() if "limit" in str(name)),
    }
