"""What is predicted of one image."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's answer to one image; of an image that cannot be used, only the error.

    Args:
        labels: classes, the most likely first.
        scores: of these classes, in [0, 1]: softmax, or sigmoid for a model that was trained so, of the
            logits divided by the setting's temperature.
        names: of these classes; None if names are not known.
        features: float32 [D], what enters the head, or of two towers the image's embedding, of length 1; None
            unless asked for.
        tokens: that the model has seen of the image, in all stages together.
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
