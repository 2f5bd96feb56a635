"""Whether features of one budget mean the same as those of another: nearest neighbours across budgets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from packvit.evaluate.measures.knn import classify_by_neighbours


@dataclass(frozen=True)
class Agreement:
    """Accuracies of k nearest neighbours across S settings.

    Args:
        accuracy: float64 [S, S]; row: the setting of the images that ask, column: that of those that answer.
        neighbours: k.
    """

    accuracy: Tensor
    neighbours: int

    @property
    def mode_switch(self) -> float:
        """What it costs to ask at another setting: the mean accuracy within a setting less that across two.

        It is 0 where all settings share one space, and nears the accuracy itself where each is a model of its
        own.
        """
        settings = len(self.accuracy)
        within = self.accuracy.trace() / settings
        across = (self.accuracy.sum() - self.accuracy.trace()) / (settings * (settings - 1))
        return float(within - across)


def find_agreement(features: Tensor, labels: Tensor, neighbours: int) -> Agreement:
    """Each image asks all others, shown at each setting, for its class; never itself.

    Args:
        features: [S, N, D] of S >= 2 settings.
        labels: int64 [N].
        neighbours: k; at most N - 1 are there to be asked.
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
