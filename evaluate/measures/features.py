"""Features that an evaluation has stored."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from packvit.evaluate.results import check_array, predictions_name, read_arrays, read_results_file

PREFIX = "features/"


@dataclass(frozen=True)
class StoredFeatures:
    """The images of one predictions.npz that have labels.

    Args:
        path: path of the file, for messages.
        labels: int64 [N].
        settings: float32 [N, D] by the setting's name.
    """

    path: Path
    labels: Tensor
    settings: dict[str, Tensor]

    @property
    def width(self) -> int:
        """D."""
        return next(iter(self.settings.values())).shape[1]


def read_features(path: Path | str) -> StoredFeatures:
    """Read the features of predictions.npz, or of the one in an evaluation's folder.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds no features or labels; names the file.
    """
    path = Path(path)
    path = path / predictions_name() if path.is_dir() else path
    stored = read_arrays(path, lambda name: name == "labels" or name.startswith(PREFIX))
    if "labels" not in stored:
        raise ValueError(f"{path} has no labels: it is not a {predictions_name()} of `packvit eval`")
    labels = check_array(stored.pop("labels"), "i", None, f"{path}: 'labels'")
    features = {name.removeprefix(PREFIX): values for name, values in stored.items()}
    if not features:
        raise ValueError(f"{path} holds no features: run `packvit eval` with --features")
    for name, values in features.items():
        whole = values.ndim == 2 and values.dtype.kind == "f" and len(values) == len(labels)
        if not whole or not np.isfinite(values).all():
            raise ValueError(
                f"{path}: {PREFIX}{name} is not a finite vector for each of {len(labels)} images"
            )
    if len({values.shape[1] for values in features.values()}) > 1:
        raise ValueError(f"{path} holds features of several widths")
    known = labels >= 0
    if not known.any():
        raise ValueError(f"{path} holds no image with a label")
    settings = {name: torch.from_numpy(values[known]).float() for name, values in features.items()}
    return StoredFeatures(path, torch.from_numpy(labels[known]).long(), settings)


def stored_model(path: Path) -> str | None:
    """The hash of the model that features come from, in results.json beside them, or None."""
    try:
        model = read_results_file(path.parent).model
    except (OSError, ValueError):
        return None
    found = model.get("hash") if isinstance(model, dict) else None
    return found if isinstance(found, str) else None
