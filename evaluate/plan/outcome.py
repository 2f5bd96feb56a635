"""The results of a setting or a cascade on the half of the images that was not used to choose."""

from dataclasses import dataclass, field

import numpy as np
import torch

from packvit.evaluate.measures.accuracy import wilson_interval
from packvit.evaluate.measures.calibration import expected_calibration_error
from packvit.evaluate.plan.cascade import Cascade, Front, cascade_costs, follow, search
from packvit.evaluate.plan.choose import Budget
from packvit.evaluate.plan.evaluated import Evaluated
from packvit.evaluate.plan.plan import Measured


@dataclass(frozen=True)
class Outcome:
    """Measurements of one cascade, which may be of a single stage.

    Args:
        right: bool [n]; whether the answer to each image of this half is right.
        cost: mean over images, in the budget's unit.
        shares: shares of the images that reach each stage.
        measured: the measurements in the form of plan.json.
    """

    cascade: Cascade
    right: np.ndarray
    cost: float
    shares: tuple[float, ...]
    measured: Measured


@dataclass(frozen=True)
class Halves:
    """The images in two halves: cascades are found on the one that fitted the temperatures.

    Args:
        evaluated: settings whose costs are all known.
    """

    evaluated: Evaluated
    budget: Budget
    costs: np.ndarray = field(init=False)
    gflops: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", self.evaluated.costs(self.budget.unit))
        object.__setattr__(self, "gflops", self.evaluated.costs("gflops"))

    def search(self, stages: int) -> Front:
        """All cascades of two up to so many stages, on the half used to choose."""
        known, half = self.evaluated, self.evaluated.fit_half
        arrays = known.correct[:, half], known.confidence[:, half], self.costs[:, half]
        return search(*arrays, stages, worst=self.budget.worst)

    def measure(self, cascade: Cascade) -> Outcome:
        """The results of a cascade on the other half."""
        known, half = self.evaluated, ~self.evaluated.fit_half
        confidence = known.confidence[:, half]
        end = follow(cascade, confidence)
        answer = np.array(cascade.stages)[end], np.arange(len(end))
        right = known.correct[:, half][answer]
        shown = confidence[answer]
        ece = expected_calibration_error(torch.from_numpy(shown), torch.from_numpy(right))
        shares = tuple(float((end >= place).mean()) for place in range(len(cascade.stages)))
        rows = [known.rows[index] for index in cascade.stages]
        p50 = [None if row.predicted else row.p50 for row in rows]
        medians = [ms * share for ms, share in zip(p50, shares, strict=True) if ms is not None]
        low, high = wilson_interval(int(right.sum()), len(right))
        measured = Measured(
            accuracy=float(right.mean()),
            accuracy_low=low,
            accuracy_high=high,
            ece_calibrated=ece,
            tokens_per_image=self._mean(cascade, end, known.tokens),
            gflops_per_image=self._mean(cascade, end, self.gflops),
            latency_ms_p50=sum(medians) if len(medians) == len(rows) else None,
        )
        cost = self._mean(cascade, end, self.costs, self.budget.worst)
        return Outcome(cascade, right, cost, shares, measured)

    def _mean(self, cascade: Cascade, end: np.ndarray, costs: np.ndarray, worst: bool = False) -> float:
        half = costs[:, ~self.evaluated.fit_half]
        return float(cascade_costs(cascade, end, half, worst).mean())

    def names(self, cascade: Cascade) -> list[str]:
        """The names of the settings of its stages."""
        return [self.evaluated.rows[index].setting.name for index in cascade.stages]
