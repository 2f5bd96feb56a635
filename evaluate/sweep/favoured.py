"""The best patch size for a number of tokens, according to the measurements of a grid."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# A measured range of tokens counts for this factor beyond its ends, with the value at the end.
BEYOND = 1.5


def favoured_patch_size(rows: Sequence[Mapping[str, Any]], tokens: int, measure: str) -> int:
    """The patch size of the highest value at a number of tokens, interpolated over log(tokens).

    Patch sizes that were measured at about so many tokens are compared or, if there is none, those with the
    nearest measurements. Of equally good ones, the largest is chosen, at which images have the most detail.

    Args:
        rows: rows of results.json for one model and set, at least one of them without `stride`; each has
            `patch_size`, `tokens_per_image` and `measure`. Overlapping patches are not compared.
        measure: name of the value, the higher the better.
    """
    wanted, found = math.log(tokens), []
    rows = [row for row in rows if not row.get("stride")]
    for p in sorted({row["patch_size"] for row in rows}, reverse=True):
        own = sorted(
            (math.log(row["tokens_per_image"]), row[measure]) for row in rows if row["patch_size"] == p
        )
        places, values = zip(*own, strict=True)
        distance = max(0.0, places[0] - wanted, wanted - places[-1])
        found.append((max(0.0, distance - math.log(BEYOND)), -float(np.interp(wanted, places, values)), p))
    return min(found, key=lambda candidate: candidate[:2])[2]
