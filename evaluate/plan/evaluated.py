"""What a planner knows about a model: each setting's cost and accuracy, and its answer for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from packvit.evaluate.measures.classification import ACCURACY
from packvit.evaluate.plan.plan import PlannedModel
from packvit.evaluate.setting import Setting
from packvit.models import ViTConfig

Unit = Literal["tokens", "gflops", "p50", "p99"]


@dataclass(frozen=True)
class Row:
    """A measured setting.

    Args:
        accuracy, accuracy_low, accuracy_high: share of the images that are right, by `Evaluated.measure`.
        tokens, gflops: means over images, of one forward pass.
        p50, p99: milliseconds at batch 1; None if they were not measured.
        latency_tokens: tokens of the image whose latency was measured.
        images_per_s: throughput in packed batches.
        predicted: whether p50 and p99 come from a fitted model instead of a measurement.
    """

    setting: Setting
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    ece_calibrated: float | None
    temperature: float
    tokens: float
    gflops: float
    p50: float | None = None
    p99: float | None = None
    latency_tokens: float | None = None
    images_per_s: float | None = None
    predicted: bool = False

    def cost(self, unit: Unit) -> float | None:
        """Its cost; None if it is not known."""
        return getattr(self, unit)


@dataclass(frozen=True)
class Evaluated:
    """The settings of one model with their answers for N images with known labels.

    Args:
        rows: K settings.
        device: the device on which latency was measured, and its number of threads.
        fit_half: bool [N]; the images that temperatures were fitted on. All choices are made on these.
        correct: bool [K, N]; whether the predicted class is the image's label.
        confidence: float64 [K, N]; confidence in the predicted class, after temperature scaling.
        tokens: int64 [K, N].
        left_out: a sentence for each setting that cannot be used for planning.
        measure: which answers count as right: ACCURACY, or FIRST (recall@1), without a confidence.
        corruptions: the effect of corruptions by the setting's name; see
            `packvit.evaluate.results.ResultsFile`.
    """

    model: PlannedModel
    config: ViTConfig
    device: str
    classes: tuple[str, ...] | None
    rows: tuple[Row, ...]
    fit_half: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    tokens: np.ndarray
    left_out: tuple[str, ...] = ()
    measure: str = ACCURACY
    corruptions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def costs(self, unit: Unit) -> np.ndarray:
        """float64 [K, N]: what each setting costs on each image.

        Tokens and FLOPs are each image's own. Latency was measured on one image at each setting, so it is the
        same for every image.
        """
        if unit == "tokens":
            return self.tokens.astype(np.float64)
        costs = np.empty(self.tokens.shape)
        for index, (row, tokens) in enumerate(zip(self.rows, self.tokens, strict=True)):
            if unit == "gflops":
                lengths, place = np.unique(tokens, return_inverse=True)
                p = row.setting.patch_size
                costs[index] = np.array([self.config.flops(int(n), p) / 1e9 for n in lengths])[place]
            else:
                costs[index] = np.nan if (cost := row.cost(unit)) is None else cost
        return costs

    def only(self, indices: Sequence[int], reason: str) -> "Evaluated":
        """The same with these settings only; the others are listed as left out, for the given reason."""
        others = [row for index, row in enumerate(self.rows) if index not in indices]
        kept = list(indices)
        return replace(
            self,
            rows=tuple(self.rows[index] for index in kept),
            correct=self.correct[kept],
            confidence=self.confidence[kept],
            tokens=self.tokens[kept],
            left_out=(*self.left_out, *(f"{row.setting.name} is left out: {reason}" for row in others)),
        )
