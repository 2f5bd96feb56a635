"""Features that an evaluation has stored."""

import json
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

PREFIX = "features/"


@dataclass(frozen=True)
class StoredFeatures:
    """The images of one predictions.npz that have labels.

    Args:
        path: of the file, for messages.
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
        ValueError: it is no such file, or holds no features or labels; names the file.
        OSError: the file cannot be read.
    """
    path = Path(path)
    path = path / "predictions.npz" if path.is_dir() else path
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            labels = stored["labels"]
            features = {
                name.removeprefix(PREFIX): stored[name] for name in stored.files if name.startswith(PREFIX)
            }
    except (ValueError, KeyError, BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no predictions.npz of `packvit eval` ({error})") from error
    if not features:
        raise ValueError(f"{path} holds no features: run `packvit eval` with --features")
    for name, values in features.items():
        if values.ndim != 2 or len(values) != len(labels) or not np.isfinite(values).all():
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
    """The hash of the model that features come from, by results.json beside them; None without one."""
    try:
        model = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))["model"]
        return model["hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
