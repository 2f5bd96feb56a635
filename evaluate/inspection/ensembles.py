"""Ensembles of one model with itself: the mean of several settings against one setting of at most their cost.

Every second image is used to choose the single setting that is the rival. All reported values are measured on
the other images, so that nothing is judged by the images on which it was chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor

from packvit.evaluate.measures.accuracy import DEVIATIONS, wilson_interval
from packvit.evaluate.measures.calibration import LossKind, probabilities

SIZES = (2, 3)  # settings in an ensemble


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def gain(new: Tensor, old: Tensor) -> Share:
    """The gain of a share on the same images, with the interval of Agresti and Min (2005), which adds half an
    image to each of the four ways in which the two can agree or differ.

    Args:
        new, old: bool [N].
    """
    n = len(new)
    won, lost = int((new & ~old).sum()), int((old & ~new).sum())
    better, worse, total = won + 0.5, lost + 0.5, n + 2
    centre = (better - worse) / total
    half = DEVIATIONS * math.sqrt(max(0.0, better + worse - (better - worse) ** 2 / total)) / total
    return Share((won - lost) / n, max(-1.0, centre - half), min(1.0, centre + half))


def compare_ensembles(
    logits: Tensor, labels: Tensor, gflops: Sequence[float], names: Sequence[str], loss: LossKind
) -> dict[str, Any]:
    """Every pair and triple of settings against the best single setting that costs at most as much.

    The probabilities of the settings are averaged, softmax or sigmoid as the model was trained, not their
    logits; the class with the highest mean is the answer.

    Args:
        logits: [S, N, classes], of at least 2 images.
        labels: int64 [N].
        gflops: GFLOPs of one image at each setting.
        names: names of the settings.

    Returns:
        `chosen_on` and `measured_on`, images of the two halves; `singles`, each setting's accuracy on the
        second half; `rows`, one for each ensemble: `settings`, `gflops_per_image`, `chosen_accuracy` (on the
        first half), `accuracy`, `single` (the rival's name), `single_gflops_per_image`, `single_accuracy`,
        and `gain`, the difference of the two accuracies. Accuracies and gain on the second half come with
        `_low` and `_high`, their 95 % interval.
    """
    shares = torch.stack([probabilities(z.float(), loss) for z in logits])  # [S, N, classes]
    right = shares.argmax(-1) == labels  # [S, N]
    chosen_by, held_out = right[:, ::2].double().mean(1).tolist(), right[:, 1::2]
    singles = [as_fields("accuracy", accuracy(answers)) for answers in held_out]
    rows = []
    for members in chain.from_iterable(combinations(range(len(names)), size) for size in SIZES):
        cost = sum(gflops[s] for s in members)
        affordable = (s for s in range(len(names)) if gflops[s] <= cost)
        rival = max(affordable, key=lambda s: (chosen_by[s], -gflops[s]))
        together = shares[list(members)].mean(0).argmax(-1) == labels  # [N]
        rows.append(
            {
                "settings": [names[s] for s in members],
                "gflops_per_image": cost,
                "chosen_accuracy": float(together[::2].double().mean()),
                **as_fields("accuracy", accuracy(together[1::2])),
                "single": names[rival],
                "single_gflops_per_image": gflops[rival],
                **as_fields("single_accuracy", accuracy(held_out[rival])),
                **as_fields("gain", gain(together[1::2], held_out[rival])),
            }
        )
    return {
        "chosen_on": right.shape[1] - held_out.shape[1],
        "measured_on": held_out.shape[1],
        "singles": [
            {"setting": name, "gflops_per_image": cost, "chosen_accuracy": chosen, **single}
            for name, cost, chosen, single in zip(names, gflops, chosen_by, singles, strict=True)
        ],
        "rows": rows,
    }


def accuracy(right: Tensor) -> Share:
    """The share of right answers, bool [N], with Wilson's interval."""
    correct, total = int(right.sum()), len(right)
    return Share(correct / total, *wilson_interval(correct, total))


def as_fields(name: str, share: Share) -> dict[str, float]:
    """{name, name_low, name_high}."""
    return {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
