"""The output of an inspection: inspect.json, pictures, printed tables."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from packvit.common.display import Display
from packvit.common.files import write_whole
from packvit.common.json_lines import finite
from packvit.evaluate.inspection.figures import draw_agreement, draw_cka, draw_ensembles
from packvit.evaluate.inspection.pictures import Looked, draw_attention, draw_similarity

SHOWN_ENSEMBLES = 5


def write_inspection(
    results: Mapping[str, Any], looked: Sequence[Looked], out: Path, display: Display
) -> None:
    """Write inspect.json and, if matplotlib is installed, the pictures; earlier ones are replaced.

    Args:
        results: the content of inspect.json.
        looked: the images to draw.
        out: folder; created if needed.
    """
    out.mkdir(parents=True, exist_ok=True)
    known = finite(dict(results))
    write_whole(out / "inspect.json", json.dumps(known, indent=1, allow_nan=False) + "\n")
    display.draw(partial(draw_all, known, looked, out))


def draw_all(results: Mapping[str, Any], looked: Sequence[Looked], out: Path) -> None:
    """The pictures of an inspection; see `write_inspection`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    names = [row["setting"] for row in results["settings"]]
    draw_cka(results["cka"], names, out / "cka.png")
    draw_agreement(results["knn"]["accuracy"], results["knn"]["neighbours"], names, out / "knn.png")
    if results["ensembles"] is not None:
        draw_ensembles(results["ensembles"], out / "ensembles.png")
    if looked:
        draw_similarity(looked, names, out / "similarity.png")
        draw_attention(looked, names, results["attention"], out / "attention.png")


def show_inspection(results: Mapping[str, Any], display: Display) -> None:
    """Print the settings, how alike they are, and what their ensembles gain."""
    settings, knn, pooled = results["settings"], results["knn"], results["cka"]["pooled"]
    display.table(
        f"{results['images']} images; CKA is the mean with the other settings",
        ["setting", "tokens", "GFLOPs", "accuracy", "CKA embed", "CKA features", "k-NN"],
        [
            [
                row["setting"],
                f"{row['tokens_per_image']:.1f}",
                f"{row['gflops_per_image']:.3f}",
                f"{row['accuracy']:.1%}" if "accuracy" in row else "",
                mean_of_others(pooled["embed"], number),
                mean_of_others(pooled["features"], number),
                f"{knn['accuracy'][number][number]:.1%}",
            ]
            for number, row in enumerate(settings)
        ],
    )
    if (least := least_alike(results)) is not None:
        cka, place, pair = least
        display.say(f"Least alike: {' and '.join(pair)}, CKA {cka:.2f} at {place}")
    change = -100 * knn["mode_switch"]
    display.say(
        f"Mode switch: k-NN accuracy is {abs(change):.1f} points {'higher' if change > 0 else 'lower'} if "
        "images at one setting are classified by neighbours at another"
    )
    if results["ensembles"] is not None:
        show_ensembles(results["ensembles"], display)


def show_ensembles(ensembles: Mapping[str, Any], display: Display) -> None:
    """Print the ensembles that are most accurate on the half used to choose, each beside its rival."""
    rows = sorted(ensembles["rows"], key=lambda row: (-row["chosen_accuracy"], row["gflops_per_image"]))
    display.table(
        f"Means of probabilities, against one setting of at most the cost; {ensembles['measured_on']} images",
        ["mean of", "GFLOPs", "right", "against", "right", "points (95 %)"],
        [
            [
                " ".join(row["settings"]),
                f"{row['gflops_per_image']:.3f}",
                f"{row['accuracy']:.1%}",
                row["single"],
                f"{row['single_accuracy']:.1%}",
                f"{100 * row['gain']:+.1f} ({100 * row['gain_low']:+.1f}..{100 * row['gain_high']:+.1f})",
            ]
            for row in rows[:SHOWN_ENSEMBLES]
        ],
    )
    better, worse = (sum(row["gain_low"] > 0 for row in rows), sum(row["gain_high"] < 0 for row in rows))
    display.say(
        f"Of {len(rows)} ensembles, {better} are significantly better and {worse} significantly worse"
    )


def mean_of_others(matrix: Sequence[Sequence[float]], number: int) -> str:
    """The mean of a row of CKA without the setting itself; empty if features do not vary."""
    others = [value for place, value in enumerate(matrix[number]) if place != number]
    mean = sum(others) / len(others)
    return f"{mean:.2f}" if mean == mean else ""


def least_alike(results: Mapping[str, Any]) -> tuple[float, str, tuple[str, str]] | None:
    """The lowest CKA of pooled features, its place and its pair of settings; None if no features vary."""
    names = [row["setting"] for row in results["settings"]]
    found = [
        (matrix[a][b], place, (names[a], names[b]))
        for place, matrix in results["cka"]["pooled"].items()
        for a, b in combinations(range(len(names)), 2)
        if matrix[a][b] == matrix[a][b]
    ]
    return min(found, default=None)
