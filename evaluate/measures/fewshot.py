"""Few-shot linear probes of frozen features, as in big_vision's evaluator `fewshot_lsr`.

A probe is a ridge regression onto the classes from a few images of each: features are standardised, a large
constant feature takes the place of a bias, targets are 1 for the image's class and -1 for the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RIDGE = 2.0**10
BIAS = 100.0  # the constant feature, so large that it is hardly regularised
SPREAD = 1e-5  # added to the standard deviations
SHOTS = (1, 5, 10, 25)
DRAWS = 3


@dataclass(frozen=True)
class LinearProbe:
    """Ridge regression from features onto classes.

    Args:
        mean, spread: [1, D]; features are standardised by them.
        weights: [D + 1, C], the last row for the constant feature.
    """

    mean: Tensor
    spread: Tensor
    weights: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """[N, C]; the highest is the prediction.

        Args:
            features: [N, D].
        """
        return _with_bias((features.to(self.mean) - self.mean) / self.spread) @ self.weights


def fit_probe(features: Tensor, labels: Tensor, classes: int, ridge: float = RIDGE) -> LinearProbe:
    """The probe by least squares with a penalty of `ridge` on the squared weights.

    The smaller of X^T X [D+1, D+1] and X X^T [N, N] is decomposed into its eigenvectors; both ways give the
    same weights. Costs O(N D min(N, D)).

    Args:
        features: [N, D] of at least one image; their floating-point type is used throughout.
        labels: int64 [N], 0..classes-1.
    """
    mean, spread = features.mean(0, keepdim=True), features.std(0, correction=0, keepdim=True) + SPREAD
    inputs = _with_bias((features - mean) / spread)
    targets = 2 * torch.nn.functional.one_hot(labels, classes).to(inputs) - 1
    if len(inputs) >= inputs.shape[1]:
        values, vectors = torch.linalg.eigh(inputs.T @ inputs)
        left, right = vectors, vectors.T @ (inputs.T @ targets)
    else:
        values, vectors = torch.linalg.eigh(inputs @ inputs.T)
        left, right = inputs.T @ vectors, vectors.T @ targets
    return LinearProbe(mean, spread, (left / (values + ridge)) @ right)


def draw_shots(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Places of `shots` images of each class, the same for the same seed; more shots include those of fewer.

    Args:
        labels: int64 [N].

    Returns:
        int64 [classes * shots], class by class.

    Raises:
        ValueError: a class has fewer images; names it.
    """
    rng = np.random.default_rng(seed)
    found = []
    for label in range(int(labels.max()) + 1):
        images = np.flatnonzero(labels.numpy() == label)
        if 0 < len(images) < shots:
            raise ValueError(
                f"class {label} has {len(images)} images to learn from, too few for {shots} shots"
            )
        found.append(rng.permutation(images)[:shots])
    return torch.from_numpy(np.concatenate(found))


def fit_shots(
    features: Tensor, labels: Tensor, shots: Sequence[int], draws: int = DRAWS, ridge: float = RIDGE
) -> dict[int, list[LinearProbe]]:
    """For each number of shots, a probe for each draw of so many images of each class.

    Args:
        features: [N, D] of the images that are drawn from.
        labels: int64 [N].

    Raises:
        ValueError: a class has fewer images than shots; names it.
    """
    classes = int(labels.max()) + 1
    probes: dict[int, list[LinearProbe]] = {}
    for count in shots:
        drawn = [draw_shots(labels, count, seed) for seed in range(draws)]
        probes[count] = [fit_probe(features[places], labels[places], classes, ridge) for places in drawn]
    return probes


def probe_accuracy(probe: LinearProbe, features: Tensor, labels: Tensor) -> float:
    """The share of the images, features [M, D] and labels int64 [M], whose highest score is their class's."""
    return float((probe.scores(features).argmax(1) == labels).double().mean())


def check_classes(train: Tensor, test: Tensor) -> None:
    """Refuse test images that cannot be classified.

    Args:
        train, test: int64 labels.

    Raises:
        ValueError: a class of the test images is missing in training, or there are no images.
    """
    for labels, purpose in ((train, "learn from"), (test, "classify")):
        if not len(labels):
            raise ValueError(f"there are no images to {purpose}")
    missing = sorted(set(test.tolist()) - set(train.tolist()))
    if missing:
        raise ValueError(
            f"class {missing[0]} of the images to classify has none among the images to learn from"
            + (f", nor have {len(missing) - 1} more" if missing[1:] else "")
        )


def _with_bias(features: Tensor) -> Tensor:
    return torch.nn.functional.pad(features, (0, 1), value=BIAS)
