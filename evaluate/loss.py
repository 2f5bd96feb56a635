"""How a model was trained, as far as its files say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from packvit.evaluate.measures.calibration import LossKind
from packvit.models import local_model

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"  # RUN/checkpoints/step-00000100 is a model's folder, too
BEST = "best"  # and so is RUN/best


def find_run_config(path: str | Path) -> Path | None:
    """The config.yaml of the run to which a model's folder, checkpoint or file belongs, or None."""
    place = local_model(path).absolute()
    folder = place if place.is_dir() else place.parent
    if folder.parent.name == CHECKPOINTS:
        folder = folder.parent.parent
    elif folder.name == BEST and not (folder / CONFIG).is_file():
        folder = folder.parent
    return folder / CONFIG if (folder / CONFIG).is_file() else None


def run_section(path: str | Path, name: str) -> Mapping[str, Any]:
    """A section of the config.yaml of the run that a model belongs to; empty if no file has it.

    Raises:
        ValueError: config.yaml is not YAML; names it.
        OSError: it cannot be read.
    """
    config = find_run_config(path)
    if config is None:
        return {}
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config}: {' '.join(str(error).split())}") from error
    section = values.get(name) if isinstance(values, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def run_field(path: str | Path, section: str, name: str) -> Any:
    """A field of the config.yaml of the run that a model belongs to; None where no file has it.

    Raises:
        ValueError, OSError: see `run_section`.
    """
    return run_section(path, section).get(name)


def loss_kind(path: str | Path) -> LossKind | None:
    """`train.loss` of the run that a model belongs to; None if no file says it.

    Raises:
        ValueError, OSError: see `run_field`.
    """
    loss = run_field(path, "train", "loss")
    return loss if loss in ("softmax", "sigmoid") else None
