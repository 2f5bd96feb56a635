"""The weights that a run starts with."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from packvit.models import BlockConfig, PackedViT, ViTConfig, load_model
from packvit.models.resample import pi_resize, resize_matrix
from packvit.packing import derive_seed
from packvit.train.config import Config
from packvit.train.step.interface import TrainedModule
from packvit.train.tasks.task import Task

# What may differ between a model and the one whose weights it starts with.
OWN_FIELDS = (
    "num_classes",
    "patch_buffer",
    "patch_operator",
    "pos_grid",
    "pos_resize",
    "drop_path",
    "checkpoint_every",
)


def make_module(config: Config, task: Task, resumed: bool = False) -> TrainedModule:
    """The trained module, initialised by `config.seed`, or with the weights of a model.

    Does not change the global random state.

    Args:
        resumed: whether its weights will come from a checkpoint; the model to start with may then be missing.

    Raises:
        FileNotFoundError: there is nothing at `train.init`.
        ValueError: see `start_from`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "model") % 2**63)
        module = task.build(PackedViT(config.model))
    if module.model.head is not None:
        torch.nn.init.constant_(module.model.head.bias, config.train.head_bias)
    start, path = task.initial(), Path(config.train.init)
    from_init = start is None and config.train.init and not resumed
    if from_init:
        start = load_model(path).float(), config.train.init
    if start is not None:
        start_from(module.model, *start)
    if from_init:
        module.start_heads(path)
    return module


@torch.no_grad()
def start_from(model: PackedViT, other: PackedViT, name: str) -> None:
    """Copy a model's weights.

    The patch embedding is PI-resized if the stored sizes differ, learned position tables are resampled if
    their grids differ, and a head for other classes is not copied.

    Args:
        name: name of the other model, for messages.

    Raises:
        ValueError: the architectures differ in anything that weights depend on.
    """
    own, theirs = model.config, other.config
    check_same(own, theirs, "model", name, OWN_FIELDS)
    weights = other.state_dict()
    weights["patch_embed.weight"] = pi_resize(
        weights["patch_embed.weight"], (own.patch_buffer, own.patch_buffer), theirs.patch_operator
    )
    grid = own.pos_grid
    for table, sides in (("table", grid), ("table_y", grid[:1]), ("table_x", grid[1:])):
        if (key := f"pos_embed.{table}") in weights:
            weights[key] = resample_table(weights[key], sides, own)
    if own.num_classes != theirs.num_classes:
        kept = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("head.")}
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("head.")} | kept
    model.load_state_dict(weights)


def check_same(
    own: BlockConfig, theirs: BlockConfig, section: str, name: str, free: Iterable[str] = ()
) -> None:
    """Refuse the weights of a model, or of one of its towers, that differs from the run's.

    Args:
        section: section of the run's configuration with its fields.
        name: name of the other model, for messages.
        free: fields that may differ.

    Raises:
        ValueError: names the fields that differ.
    """
    names = (field.name for field in fields(own) if field.name not in free)
    differ = [field for field in names if getattr(own, field) != getattr(theirs, field)]
    if differ:
        values = [f"{field}={getattr(theirs, field)!r}, not {getattr(own, field)!r}" for field in differ]
        raise ValueError(
            f"the run cannot start with the weights of {name}: its {section}.* fields are "
            f"{', '.join(values)}: give the run the same, or name it with --model, which takes them over"
        )


def resample_table(table: Tensor, sides: tuple[int, ...], config: ViTConfig) -> Tensor:
    """A learned position table [sides.., D] for another grid.

    A fractional coordinate keeps its place on the image, an absolute one keeps its entry.
    """
    for axis, side in enumerate(sides):
        old = table.shape[axis]
        if side == old:
            continue
        if config.pos_coords == "absolute":
            table = table.index_select(axis, torch.arange(side).clamp(max=old - 1))
        else:
            matrix = resize_matrix(old, side, config.pos_resize).to(table.dtype)  # [side, old]
            table = torch.tensordot(matrix, table.movedim(axis, 0), 1).movedim(0, axis)
    return table
