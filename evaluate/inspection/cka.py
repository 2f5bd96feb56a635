"""Linear CKA with the unbiased HSIC, summed over minibatches.

Centred kernel alignment (Kornblith et al., arXiv 1905.00414) compares two sets of features of the same rows.
It is 1 if one is the other rotated and scaled, and about 0 if they are independent, whatever their widths
are. The unbiased HSIC of a minibatch has the same mean as that of all rows, so it is averaged over
minibatches, and no matrix is larger than the square of one (Nguyen et al., arXiv 2010.15327).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_ROWS = 4  # the unbiased HSIC divides by n - 3


def centre(features: Tensor) -> Tensor:
    """The U-centred Gram matrix of linear features, float64 [n, n], with zeros on its diagonal.

    Its rows and columns sum to zero, and it does not depend on the diagonal of the Gram matrix, which biases
    the usual HSIC. The sum of the product of two such matrices over n (n - 3) is the unbiased HSIC of Song et
    al. (JMLR 13, 2012), as Szekely and Rizzo write it (arXiv 1310.2926).

    Args:
        features: [n, D], n at least 4.

    Raises:
        ValueError: there are fewer rows.
    """
    n = len(features)
    if n < LEAST_ROWS:
        raise ValueError(f"the unbiased HSIC needs at least {LEAST_ROWS} rows, not {n}")
    x = features.double()
    # A shift changes nothing but the digits that are lost.
    x = x - x.mean(0)
    gram = x @ x.T
    gram.fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    centred = gram - rows[:, None] - rows[None] + gram.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0)


class MinibatchCKA:
    """CKA between S sets of features of the same rows, which come in minibatches."""

    def __init__(self, sets: int) -> None:
        self.hsic = torch.zeros(sets, sets, dtype=torch.float64)  # sums of unbiased HSIC by pair
        self.minibatches = 0

    def add(self, features: Sequence[Tensor]) -> None:
        """One minibatch; O(S n^2 D + S^2 n^2).

        Args:
            features: of each set [n, D], D may differ; n at least 4, and may differ between minibatches.

        Raises:
            ValueError: there are fewer rows.
        """
        n = len(features[0])
        centred = torch.stack([centre(x).flatten() for x in features])  # [S, n * n]
        self.hsic += centred @ centred.T / (n * (n - 3))
        self.minibatches += 1

    def result(self) -> Tensor:
        """CKA by pair, float64 [S, S] in [-1, 1]; NaN if features do not vary."""
        scale = self.hsic.diagonal().sqrt()
        # What is left of rounding where all rows are one.
        scale = scale.masked_fill(scale <= 0, torch.nan)
        return self.hsic / scale[:, None] / scale[None]
