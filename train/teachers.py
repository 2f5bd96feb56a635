"""Teachers from files, and a student that starts with the weights of one."""

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from packvit.models import PackedViT, ViTConfig, load_model
from packvit.models.patch_embed import pi_resize
from packvit.models.resample import resize_matrix
from packvit.train.config import Config
from packvit.train.distill import EMA

# What may differ between a student and the teacher whose weights it starts with.
OWN_FIELDS = ("num_classes", "patch_buffer", "pos_grid", "drop_path", "checkpoint_every")


def load_teachers(config: Config) -> dict[str, PackedViT]:
    """{path: model} of the teachers that are files: in eval mode, float32, on the CPU.

    Raises:
        FileNotFoundError: nothing is at a path.
        ValueError: a file cannot be read, or its classes are not those of the student.
    """
    found = {path: load_model(Path(path)).float() for path in config.distill.teachers if path != EMA}
    for path, model in found.items():
        model.requires_grad_(False)
        theirs, own = model.config.num_classes, config.model.num_classes
        if config.distill.logits_weight and (theirs != own or not own):
            raise ValueError(
                f"distill.teachers: {path} has {theirs} classes, the model {own}: logits of different or no "
                "classes cannot be compared; set model.num_classes, or distill.logits_weight=0"
            )
    return found


@torch.no_grad()
def start_from(student: PackedViT, teacher: PackedViT, name: str) -> None:
    """Copy a teacher's weights.

    The patch embedding is PI-resized where the stored sizes differ, learned position tables are resampled
    where their grids do, and a head of other classes stays as it is.

    Args:
        name: of the teacher, for messages.

    Raises:
        ValueError: the architectures differ in anything that weights depend on.
    """
    own, theirs = student.config, teacher.config
    differ = [f.name for f in fields(ViTConfig) if f.name not in OWN_FIELDS]
    differ = [field for field in differ if getattr(own, field) != getattr(theirs, field)]
    if differ:
        values = [f"{field}={getattr(theirs, field)!r}, not {getattr(own, field)!r}" for field in differ]
        raise ValueError(
            f"the run cannot start with the weights of {name}: its model.* fields are {', '.join(values)}: "
            "give the model the same, or name it with --model, which takes them over"
        )
    weights = teacher.state_dict()
    weights["patch_embed.weight"] = pi_resize(
        weights["patch_embed.weight"], own.patch_buffer, theirs.patch_operator
    )
    grid = own.pos_grid
    for table, sides in (("table", grid), ("table_y", grid[:1]), ("table_x", grid[1:])):
        if (key := f"pos_embed.{table}") in weights:
            weights[key] = resample_table(weights[key], sides, own)
    if own.num_classes != theirs.num_classes:
        kept = {key: tensor for key, tensor in student.state_dict().items() if key.startswith("head.")}
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("head.")} | kept
    student.load_state_dict(weights)


def resample_table(table: Tensor, sides: tuple[int, ...], config: ViTConfig) -> Tensor:
    """A learned position table [sides.., D] for another grid.

    A fractional coordinate stays where it was on the image, an absolute one keeps its entry.
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
