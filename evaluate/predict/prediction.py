"""The prediction for one image."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's answer for one image, or only the error if the image cannot be used.

    Args:
        labels: classes, the most likely first.
        scores: scores of these classes, in [0, 1]: softmax, or sigmoid for a model that was trained with it,
            of the logits divided by the setting's temperature.
        names: names of these classes; None if they are not known.
        features: float32 [D], the input of the head or, for two towers, the image's embedding, of length 1;
            None unless requested.
        tokens: number of tokens of the image that the model has seen in all stages.
        setting: name of the setting whose answer this is.
        error: why there is no answer; None if there is one.
    """

    labels: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    names: tuple[str, ...] | None = None
    features: np.ndarray | None = None
    tokens: int = 0
    setting: str | None = None
    error: str | None = None
