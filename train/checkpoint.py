"""Checkpoints: everything a run needs to go on, bit for bit, in a folder that appears whole or not at all.

`step-00000100/` holds `state/` (torch.distributed.checkpoint: weights, moving average, optimizer),
`progress.json` (counters and the data streams' state) and, like a finished run, a loadable
`model.safetensors` with its `config.json`. It is written under another name and renamed when complete.
"""

import json
import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from packvit.models import PackedViT, save_model
from packvit.train.distributed import Ranks

VERSION = 1


def save_checkpoint(
    folder: Path,
    step: int,
    model: PackedViT,
    average: PackedViT | None,
    optimizer: torch.optim.Optimizer,
    progress: dict,
    ranks: Ranks,
    keep: int,
) -> Path:
    """Write `folder`/step-XXXXXXXX and remove all but the newest `keep`; every rank calls it.

    Args:
        average: the model that holds the moving average, saved as the loadable model in place of `model`.
        progress: JSON-serialisable counters and data state, the same on all ranks.
    """
    target = folder / f"step-{step:08d}"
    partial = folder / f"partial-{step:08d}"
    if ranks.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    ranks.barrier()
    with warnings.catch_warnings():
        # Saving from a single process is meant; torch warns of it.
        warnings.simplefilter("ignore")
        save(_state(model, average, optimizer), checkpoint_id=partial / "state")
    if ranks.is_main:
        save_model(average or model, partial)
        (partial / "progress.json").write_text(json.dumps({"version": VERSION, "step": step} | progress))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        for old in find_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    ranks.barrier()
    return target


def load_checkpoint(
    path: Path, model: PackedViT, average: PackedViT | None, optimizer: torch.optim.Optimizer
) -> dict:
    """Restore the modules in place and return the progress that was saved with them.

    Raises:
        ValueError: the checkpoint is of another version, or of a model of other shapes.
    """
    progress = json.loads((path / "progress.json").read_text())
    if progress["version"] != VERSION:
        raise ValueError(f"{path}: version {progress['version']}, this packvit reads {VERSION}")
    state = _state(model, average, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load(state, checkpoint_id=path / "state")
        except CheckpointException as error:
            raise ValueError(
                f"{path} was saved by a run with another model or optimizer configuration"
            ) from error
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return progress


def find_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _state(model: PackedViT, average: PackedViT | None, optimizer: torch.optim.Optimizer) -> dict:
    weights, optim = get_state_dict(model, optimizer)
    state: dict[str, dict[str, Tensor] | dict] = {"model": weights, "optimizer": optim}
    if average is not None:
        state["average"] = average.state_dict()
    return state
