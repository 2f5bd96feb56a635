"""Meet a mean number of tokens by drawing resolution and patch size jointly.

Of all joint distributions with the given weights of the patch sizes and the given mean, the one nearest to
the drawn one (least Kullback-Leibler divergence) multiplies each p(resolution | patch size) by
exp(rate * tokens). Small patches, which give many tokens, are thereby shown at lower resolutions more often
than large ones.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from packvit.packing.views_config import DropConfig, ResolutionConfig, ViewsConfig

STEPS = 256  # parts of the range of resolutions that are weighed
HALVINGS = 100
STEEPEST = 1e6  # of exp(rate * tokens / most tokens): all but the extreme resolutions have vanished by then


def tilt(base: np.ndarray, tokens: np.ndarray, weights: np.ndarray, mean: float) -> np.ndarray:
    """Probabilities of K resolutions for each of P patch sizes, float64 [P, K], whose mean tokens are `mean`.

    Args:
        base: float [K], the resolutions' weights to start from.
        tokens: float [P, K], of a view with that patch size at that resolution.
        weights: float [P], relative, of the patch sizes.
        mean: tokens, over all patch sizes.

    Raises:
        ValueError: no tilt has this mean; names the reachable range.
    """
    weights = weights / weights.sum()
    possible = tokens[:, base > 0]
    low, high = weights @ possible.min(1), weights @ possible.max(1)
    if not low < mean < high:
        raise ValueError(
            f"a mean of {mean:g} tokens is out of reach: resolution, patch sizes and drop rate "
            f"allow {low:.1f} to {high:.1f}"
        )
    below, above = -STEEPEST, STEEPEST
    for _ in range(HALVINGS):
        rate = (below + above) / 2
        if weights @ (_tilted(base, tokens, rate) * tokens).sum(1) < mean:
            below = rate
        else:
            above = rate
    return _tilted(base, tokens, below)


def _tilted(base: np.ndarray, tokens: np.ndarray, rate: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        log = np.log(base) + rate * tokens / tokens.max()  # [P, K]
    tilted = np.exp(log - log.max(1, keepdims=True))
    return tilted / tilted.sum(1, keepdims=True)


def side(share: float, config: "ResolutionConfig") -> float:
    """Pixels of the side at a share, 0..1, of the range."""
    if config.measure == "side":
        return config.low + share * (config.high - config.low)
    return math.sqrt(config.low**2 + share * (config.high**2 - config.low**2))


def weighed_sides(config: "ResolutionConfig") -> tuple[np.ndarray, np.ndarray]:
    """Resolutions in pixels and their relative weights, float64 [K] each: the list, or parts of the range."""
    if config.sides:
        return np.array(config.sides, float), np.array(config.weights or [1] * len(config.sides), float)
    shares = (np.arange(STEPS) + 0.5) / STEPS
    weights = np.ones(STEPS)
    if config.distribution == "normal":
        weights = np.exp(-(((2 * shares - 1 - config.mean) / config.std) ** 2) / 2)
    return np.array([side(share, config) for share in shares]), weights


@lru_cache(maxsize=16)
def budget_shares(config: "ViewsConfig") -> dict[int, list[float]]:
    """Cumulative probability of each of `weighed_sides`, by patch size.

    Raises:
        ValueError: the budget is out of reach.
    """
    sides, base = weighed_sides(config.resolution)
    # Square views; others have as many tokens within the rounding of their sides.
    patches = np.maximum(1, np.rint(sides / np.array(config.patch_sizes)[:, None])) ** 2  # [P, K]
    kept = np.maximum(1, patches * (1 - mean_rate(config.drop, token_share(patches, config))))
    weights = np.array(config.patch_weights or [1] * len(config.patch_sizes), float)
    assert config.budget is not None
    tilted = tilt(base, kept, weights, config.budget)
    return dict(zip(config.patch_sizes, tilted.cumsum(1).tolist(), strict=True))


def token_share(tokens: Any, config: "ViewsConfig") -> Any:
    """Where numbers of tokens lie, in 0..1, between the fewest and the most that the config can draw."""
    fewest = (config.resolution.low / max(config.patch_sizes)) ** 2
    most = (config.resolution.high / min(config.patch_sizes)) ** 2
    return np.clip((tokens - fewest) / max(most - fewest, 1e-9), 0, 1)


def mean_rate(config: "DropConfig", share: Any) -> Any:
    """Expected drop rate of views with this `token_share`; schedules have none of their own."""
    assert config.kind != "schedule"
    if config.kind == "resolution":
        return config.minimum + share * (config.maximum - config.minimum)
    return 0.0 if config.kind == "none" else config.mean
