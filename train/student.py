"""The student: the model in training, and linear maps to the widths of teachers that it is compared with."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from packvit.models import PackedViT, ViTConfig, load_model
from packvit.packing import PackedBatch, derive_seed
from packvit.train.config import Config
from packvit.train.distill import DistillConfig
from packvit.train.teachers import start_from


class StudentOutputs(NamedTuple):
    """What the loss compares; a tuple, so that FSDP finds its tensors.

    logits: [N, classes].
    features: for each teacher [N, its feature_dim]; empty without `distill.feature_weight`.
    tokens: for each teacher [T, its width]; empty without `distill.token_weight`.
    """

    logits: Tensor
    features: list[Tensor]
    tokens: list[Tensor]


class Student(nn.Module):
    """All that is trained. The maps belong to the checkpoint, not to the exported model.

    Args:
        model: what is exported.
        config: what of the teachers is imitated.
        teachers: the teachers' architectures.
    """

    def __init__(self, model: PackedViT, config: DistillConfig, teachers: Sequence[ViTConfig] = ()) -> None:
        super().__init__()
        self.model = model
        own = model.config
        inside = teachers if config.feature_weight else ()
        self.feature_maps = nn.ModuleList(linear(own.feature_dim, t.feature_dim) for t in inside)
        inside = teachers if config.token_weight else ()
        self.token_maps = nn.ModuleList(linear(own.width, t.width) for t in inside)

    def maps(self) -> list[nn.Linear]:
        """The linear maps, those of features first."""
        return [part for part in (*self.feature_maps, *self.token_maps) if isinstance(part, nn.Linear)]

    def forward(self, batch: PackedBatch) -> StudentOutputs:
        """Logits, and features and tokens as the teachers' widths want them."""
        logits, features, tokens = self.model.outputs(batch)
        return StudentOutputs(
            logits,
            [to_width(features) for to_width in self.feature_maps],
            [to_width(tokens) for to_width in self.token_maps],
        )


def linear(width: int, teacher_width: int) -> nn.Module:
    """A linear map between two widths; nothing to learn where they are the same."""
    return nn.Identity() if width == teacher_width else nn.Linear(width, teacher_width)


def make_student(config: Config, teachers: dict[str, PackedViT], resumed: bool = False) -> Student:
    """The student as `config.seed` initialises it, or with the weights of a model or of its first teacher.

    Leaves the global random state alone.

    Args:
        teachers: from `load_teachers`; any other path is the moving average.
        resumed: its weights will come from a checkpoint; the model to start with may be gone.

    Raises:
        FileNotFoundError: nothing is at `train.init`.
        ValueError: see `start_from`.
    """
    paths = config.distill.teachers
    configs = [teachers[path].config if path in teachers else config.model for path in paths]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "model") % 2**63)
        student = Student(PackedViT(config.model), config.distill, configs)
    if student.model.head is not None:
        torch.nn.init.constant_(student.model.head.bias, config.train.head_bias)
    if config.distill.init:
        start_from(student.model, teachers[paths[0]], paths[0])
    elif config.train.init and not resumed:
        start_from(student.model, load_model(Path(config.train.init)).float(), config.train.init)
    return student
