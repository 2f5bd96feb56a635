"""Checkpoints: everything a run needs to go on, bit for bit, in a folder that appears whole or not at all.

`step-00000100/` holds `state/` (torch.distributed.checkpoint: weights, moving average, optimizer),
`progress.json` (counters and the data streams' state) and, like a finished run, a loadable
`model.safetensors` with its `config.json`. It is written under another name and renamed when complete.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from packvit.models import PackedViT, save_model
from packvit.train.distributed import Ranks

VERSION = 1


def save_checkpoint(
    folder: Path,
    step: int,
    model: PackedViT,
    average: PackedViT | None,
    optimizers: Sequence[Optimizer],
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
        save(_state(model, average, optimizers), checkpoint_id=partial / "state")
    if ranks.is_main:
        save_model(average or model, partial)
        (partial / "progress.json").write_text(json.dumps({"version": VERSION, "step": step} | progress))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        for old in find_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    ranks.barrier()
    return target


def read_progress(path: Path) -> dict:
    """What `save_checkpoint` was given as progress.

    Raises:
        ValueError: the file is damaged, or of another version.
    """
    try:
        progress = json.loads((path / "progress.json").read_text())
        version = progress["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    if version != VERSION:
        raise ValueError(f"{path}: version {version}, this packvit reads {VERSION}")
    return progress


def load_checkpoint(
    path: Path, model: PackedViT, average: PackedViT | None, optimizers: Sequence[Optimizer]
) -> None:
    """Restore the modules in place; shapes are those that were saved, decay and the like stay as they are.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    state = _state(model, average, optimizers)
    settings = [[without_params(group) for group in o.param_groups] for o in optimizers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load(state, checkpoint_id=path / "state")
        except (CheckpointException, OSError) as error:
            raise damaged(path, error) from error
    set_state_dict(
        model, list(optimizers), model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    for optimizer, groups in zip(optimizers, settings, strict=True):
        for group, setting in zip(optimizer.param_groups, groups, strict=True):
            group.update(setting)


def without_params(group: dict) -> dict:
    """The settings of an optimizer's parameter group."""
    return {name: value for name, value in group.items() if name != "params"}


def damaged(path: Path, error: BaseException) -> ValueError:
    """What to raise when a checkpoint cannot be read."""
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ValueError(f"{path} is damaged ({reason}): remove it to go on from the checkpoint before")


def find_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def _state(model: PackedViT, average: PackedViT | None, optimizers: Sequence[Optimizer]) -> dict:
    weights, optim = get_state_dict(model, list(optimizers))
    state: dict[str, dict[str, Tensor] | dict] = {"model": weights, "optimizer": optim}
    if average is not None:
        state["average"] = average.state_dict()
    return state
