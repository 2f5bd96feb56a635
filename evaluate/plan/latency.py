"""A fitted model of latency, which predicts settings that were not measured from those that were.

One image of n tokens of side p costs a sum of parts, each with a weight that is at least 0:

    1            starting the operations
    n            norms, linear layers, head
    n^2          attention
    n p^2        reading the pixels and the patch embedding
    pP (p + P)   resizing the stored P x P patch embedding to p x p, axis by axis; nothing where p = P
    p != P       starting the operations of that

n includes the tokens that the model puts before the image's own. The weights minimise the sum of squared
relative errors, so that large views do not outweigh small ones. Non-negative least squares is solved by the
active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from packvit.evaluate.plan.evaluated import Evaluated, Row
from packvit.evaluate.setting import Setting
from packvit.models import ViTConfig

FEWEST = 6  # measured settings, as many as there are parts
EXACT = 1e-10  # relative to the largest value


@dataclass(frozen=True)
class Sample:
    """A measurement: `ms` of one image of `tokens` patches of side `patch_size`."""

    tokens: float
    patch_size: int
    ms: float


@dataclass(frozen=True)
class LatencyModel:
    """Weights fitted to samples, and how well they predict samples that they were not fitted to.

    Args:
        weights: float64 [6], milliseconds per unit of each part.
        errors: float64 [M], relative error at each sample when it is left out of the fit.
        tokens: the fewest and the most that were measured.
    """

    config: ViTConfig
    weights: np.ndarray
    errors: np.ndarray
    tokens: tuple[float, float]

    def predict(self, tokens: float, patch_size: int) -> float:
        """Milliseconds of one image."""
        return float(parts(self.config, tokens, patch_size) @ self.weights)


def parts(config: ViTConfig, tokens: float, patch_size: int) -> np.ndarray:
    """float64 [6]: the amount of each part for an image."""
    n, p, stored = tokens + config.prefix, patch_size, config.patch_buffer
    resize = 0 if p == stored else p * stored * (p + stored)
    return np.array([1, n, n * n, tokens * p * p, resize, p != stored], np.float64)


def fit_latency(samples: Sequence[Sample], config: ViTConfig) -> LatencyModel:
    """Fit the model of this module, once to all samples and once without each.

    Raises:
        ValueError: there are fewer than six samples, or one is not positive.
    """
    if len(samples) < FEWEST:
        raise ValueError(
            f"predicting latency needs at least {FEWEST} settings with a measured one, not {len(samples)}"
        )
    if not all(sample.ms > 0 for sample in samples):
        raise ValueError("a measured latency is not above 0")
    table = np.stack([parts(config, sample.tokens, sample.patch_size) for sample in samples])
    ms = np.array([sample.ms for sample in samples])
    relative = table / ms[:, None]
    errors = []
    for index in range(len(samples)):
        weights = solve_nonnegative(np.delete(relative, index, 0), np.ones(len(samples) - 1))
        errors.append(abs(float(relative[index] @ weights) - 1))
    tokens = [sample.tokens for sample in samples]
    weights = solve_nonnegative(relative, np.ones(len(samples)))
    return LatencyModel(config, weights, np.array(errors), (min(tokens), max(tokens)))


def solve_nonnegative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 with the smallest |matrix x - target|, by the method of Lawson and Hanson.

    Columns enter one by one, the one along which the error falls fastest first; after each, the unconstrained
    solution moves back to the first limit that it meets, and the column there leaves.

    Args:
        matrix: float64 [M, F].
        target: float64 [M].
    """
    lengths = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(lengths > 0, lengths, 1)
    x, free = np.zeros(scaled.shape[1]), np.zeros(scaled.shape[1], bool)
    enough = EXACT * max(1.0, float(np.abs(scaled.T @ target).max(initial=0)))
    for _ in range(3 * len(x)):
        slope = np.where(free, -np.inf, scaled.T @ (target - scaled @ x))
        if slope.max(initial=-np.inf) <= enough:
            break
        free[slope.argmax()] = True
        goal = _solve(scaled, target, free)
        while (negative := free & (goal <= 0)).any():
            # A column that has just entered may stand at 0 and want to go below: nothing moves, it leaves.
            way = np.maximum(x[negative] - goal[negative], np.finfo(float).tiny)
            x = np.maximum(x + (x[negative] / way).min() * (goal - x), 0)
            free &= ~(negative & (x <= EXACT * x.max(initial=0)))
            goal = _solve(scaled, target, free)
        x = goal
    return x / np.where(lengths > 0, lengths, 1)


def _solve(matrix: np.ndarray, target: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The least squares solution whose values are 0 but in the free columns."""
    x = np.zeros(matrix.shape[1])
    if free.any():
        x[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
    return x


def latency_samples(rows: Sequence[Row], percentile: Literal["p50", "p99"]) -> list[Sample]:
    """The measured latencies at batch 1, of the percentile `p50` or `p99`."""
    return [
        Sample(row.latency_tokens or row.tokens, row.setting.patch_size, ms)
        for row in rows
        if (ms := row.cost(percentile)) is not None
    ]


def packed_samples(rows: Sequence[Row]) -> list[Sample]:
    """The measured milliseconds of one image of a packed batch."""
    return [
        Sample(row.tokens, row.setting.patch_size, 1000 / row.images_per_s)
        for row in rows
        if row.images_per_s
    ]


def interpolate(evaluated: Evaluated, percentile: Literal["p50", "p99"]) -> Evaluated:
    """The same with this latency at batch 1 predicted for the settings where it was not measured.

    Raises:
        ValueError: see `fit_latency`.
    """
    if all(row.cost(percentile) is not None for row in evaluated.rows):
        return evaluated
    model = fit_latency(latency_samples(evaluated.rows, percentile), evaluated.config)

    def fill(row: Row) -> Row:
        if row.cost(percentile) is not None:
            return row
        ms = model.predict(row.tokens, row.setting.patch_size)
        return replace(row, predicted=True, **{percentile: ms})

    return replace(evaluated, rows=tuple(fill(row) for row in evaluated.rows))


def nominal_tokens(setting: Setting) -> int:
    """Tokens of a square image at a setting."""
    return setting.view((4096, 4096)).num_tokens
