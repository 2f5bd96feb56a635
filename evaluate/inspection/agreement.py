"""Whether features of one budget mean the same as those of another: nearest neighbours across budgets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from packvit.evaluate.measures.knn import classify_by_neighbours


@dataclass(frozen=True)
class Agreement:
    """Accuracies of k nearest neighbours across S settings.

    Args:
        accuracy: float64 [S, S]; row: the setting of the classified images, column: that of their neighbours.
        neighbours: k.
    """

    accuracy: Tensor
    neighbours: int

    @property
    def mode_switch(self) -> float:
        """The mean accuracy within a setting minus the mean accuracy across two settings.

        It is 0 if all settings share one space, and close to the accuracy itself if the model is a different
        one at each setting.
        """
        settings = len(self.accuracy)
        within = self.accuracy.trace() / settings
        across = (self.accuracy.sum() - self.accuracy.trace()) / (settings * (settings - 1))
        return float(within - across)


def find_agreement(features: Tensor, labels: Tensor, neighbours: int) -> Agreement:
    """Classify each image by its neighbours among all other images, shown at each setting.

    Args:
        features: [S, N, D] of S >= 2 settings.
        labels: int64 [N].
        neighbours: k; at most N - 1 are used.
    """
    settings, count, _ = features.shape
    k = min(neighbours, count - 1)
    accuracy = torch.zeros(settings, settings, dtype=torch.float64)
    for asking in range(settings):
        for answering in range(settings):
            known = features[answering], labels
            found = classify_by_neighbours(known, features[asking], k, leave_one_out=True)
            accuracy[asking, answering] = (found == labels).double().mean()
    return Agreement(accuracy, k)
