"""Meet a mean number of tokens by drawing resolution and patch size jointly.

Among all joint distributions with the given weights of the patch sizes and the given mean, the closest to the
original one (with the least Kullback-Leibler divergence) multiplies each p(resolution | patch size) by
exp(rate * tokens). As a result, small patches, which give many tokens, are shown at lower resolutions more
often than large ones.
"""

import numpy as np

HALVINGS = 100
STEEPEST = 1e6  # of exp(rate * tokens / most tokens): all but the extreme resolutions have vanished by then


def tilt(base: np.ndarray, tokens: np.ndarray, weights: np.ndarray, mean: float) -> np.ndarray:
    """Probabilities of K resolutions for each of P patch sizes, float64 [P, K], whose mean tokens are `mean`.

    Args:
        base: float [K], the original weights of the resolutions.
        tokens: float [P, K], tokens of a view with that patch size at that resolution.
        weights: float [P], relative weights of the patch sizes.
        mean: mean number of tokens over all patch sizes.

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
