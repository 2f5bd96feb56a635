"""Distillation: learning from teachers, or from labels and teachers.

The loss of every image is label_weight * label loss + sum over teachers of (logits_weight * t^2 KL(teacher ||
student) + feature_weight * distance of features + token_weight * mean distance of tokens). FlexiViT 3.5.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packvit.data import LoadedBatch, LogitsTarget, Target
from packvit.evaluate import MakeEvaluator
from packvit.models import Layout, Outputs, PackedViT, ViTConfig, load_model
from packvit.packing import PackedBatch
from packvit.train.config import Config
from packvit.train.step.interface import StepBatches, TrainedModule
from packvit.train.step.step import Engine
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.config import EMA, DistillConfig, Measure


class Distillation:
    """Learning from teachers, together with labels or instead of them; see Task.

    Args:
        config: the run's configuration; names the teachers, which are read here.

    Raises:
        FileNotFoundError: nothing is at a teacher's path.
        ValueError: a teacher cannot be read, or its classes are not those of the student.
    """

    def __init__(self, config: Config) -> None:
        self.distill = config.distill
        self.model = config.model
        self.labels = Classification(config)
        self.teachers = config.distill.budgets(config.views)
        self.loaded = load_teachers(config)
        self.models: list[PackedViT] = []
        field, classes = config.distill.logits_field, config.model.num_classes
        stored: dict[str, Target] = {"logits": LogitsTarget(field, classes)} if field else {}
        wanted = classes if config.distill.label_weight else None
        self.targets: Mapping[str, Target] = {"label": config.data.class_target(wanted), **stored}
        self.eval_targets: Mapping[str, Target] = self.labels.eval_targets
        self.evaluators: Sequence[MakeEvaluator] = self.labels.evaluators

    def initial(self) -> tuple[PackedViT, str] | None:
        """See Task."""
        path = self.distill.teachers[0] if self.distill.init else ""
        return (self.loaded[path], path) if path else None

    def build(self, model: PackedViT) -> TrainedModule:
        """See Task."""
        paths = self.distill.teachers
        configs = [self.loaded[path].config if path != EMA else self.model for path in paths]
        return Student(model, self.distill, configs)

    def prepare(self, engine: Engine) -> None:
        """See Task; moves the teachers to the student's device."""
        for path in self.distill.teachers:
            teacher = engine.average if path == EMA else self.loaded[path].to(engine.ranks.device)
            assert teacher is not None
            if teacher is not engine.average:
                engine.compile(teacher)
            self.models.append(teacher)

    def flops(self, loaded: LoadedBatch, depth: int | None = None) -> int:
        """See Task; teachers have no backward pass, and all of their blocks run."""
        pairs = zip(self.models, loaded.teachers, strict=True)
        return self.labels.flops(loaded, depth) + sum(model.config.batch_flops(view) for model, view in pairs)

    def backward(self, engine: Engine, step: StepBatches) -> Tensor:
        """See Task."""

        def answer(teacher: PackedViT, view: PackedBatch) -> Outputs:
            with torch.inference_mode(), engine.autocast:
                return teacher.outputs(view)

        def loss(student: "StudentOutputs", loaded: LoadedBatch) -> Tensor:
            # One teacher's tokens after another's: they take memory.
            return self.loss(student, loaded, map(answer, self.models, loaded.teachers))

        return engine.backward_by_image(step, loss)

    def loss(self, student: "StudentOutputs", loaded: LoadedBatch, answers: Iterable[Outputs]) -> Tensor:
        """The loss of each image; float32 [N].

        Args:
            answers: outputs of each teacher for its views of the same images.
        """
        batch = loaded.batch
        # Other ranks wait for a gradient of every parameter, also of a head whose logits have no weight.
        loss = 0 * student.logits.float().sum(1)
        if self.distill.label_weight:
            loss = loss + self.distill.label_weight * self.labels.loss(student.logits, batch)
        stored = batch.targets.get("logits")
        if isinstance(stored, Tensor):
            kl = distillation_loss(student.logits, stored, self.distill.temperature)
            loss = loss + self.distill.logits_weight * kl
        for number, (answer, view) in enumerate(zip(answers, loaded.teachers, strict=True)):
            loss = loss + self._teacher_loss(student, batch, number, answer, view)
        return loss

    def _teacher_loss(
        self, student: "StudentOutputs", batch: PackedBatch, number: int, answer: Outputs, view: PackedBatch
    ) -> Tensor:
        c = self.distill
        loss = torch.zeros(batch.num_images, device=student.logits.device)
        if c.logits_weight:
            kl = distillation_loss(student.logits, answer.logits, c.temperature)
            loss = loss + c.logits_weight * kl
        if c.feature_weight:
            # A tensor made in inference mode cannot be kept for the backward pass; its copy can.
            apart = distance(student.features[number], answer.features.clone(), c.measure)  # [N]
            loss = loss + c.feature_weight * apart
        if c.token_weight:
            target = sample_tokens(answer.tokens, view, batch)  # [T, D]
            apart = distance(student.tokens[number], target, c.measure)  # [T]
            loss = loss + c.token_weight * image_means(apart, batch)
        return loss


class StudentOutputs(NamedTuple):
    """The outputs that the loss compares; a tuple, so that FSDP finds its tensors.

    logits: [N, classes].
    features: for each teacher [N, its feature_dim]; empty without `distill.feature_weight`.
    tokens: for each teacher [T, its width]; empty without `distill.token_weight`.
    """

    logits: Tensor
    features: list[Tensor]
    tokens: list[Tensor]


class Student(TrainedModule):
    """A model, and linear maps to the widths of the teachers that it is compared with.

    Args:
        config: which outputs of the teachers are imitated.
        teachers: the teachers' architectures.
    """

    def __init__(self, model: PackedViT, config: DistillConfig, teachers: Sequence[ViTConfig]) -> None:
        super().__init__(model)
        own = model.config
        inside = teachers if config.feature_weight else ()
        self.feature_maps = nn.ModuleList(linear(own.feature_dim, t.feature_dim) for t in inside)
        inside = teachers if config.token_weight else ()
        self.token_maps = nn.ModuleList(linear(own.width, t.width) for t in inside)

    def heads(self) -> list[nn.Module]:
        """The linear maps, those of features first."""
        return [part for part in (*self.feature_maps, *self.token_maps) if isinstance(part, nn.Linear)]

    def forward(self, batch: PackedBatch) -> StudentOutputs:
        """Logits, and features and tokens mapped to the teachers' widths."""
        logits, features, tokens = self.model.outputs(batch)
        return StudentOutputs(
            logits,
            [to_width(features) for to_width in self.feature_maps],
            [to_width(tokens) for to_width in self.token_maps],
        )


def linear(width: int, teacher_width: int) -> nn.Module:
    """A linear map between two widths, or the identity if they are the same."""
    return nn.Identity() if width == teacher_width else nn.Linear(width, teacher_width)


def load_teachers(config: Config) -> dict[str, PackedViT]:
    """{path: model} of the teachers that are files: in eval mode, float32, on the CPU.

    Raises:
        FileNotFoundError, ValueError: see Distillation.
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


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """t^2 * KL(teacher || student) of each image; float32 [N]. FlexiViT 3.5.

    t^2 keeps the gradient's size independent of the temperature (Hinton et al., arXiv 1503.02531, 2).

    Args:
        logits, teacher_logits: [N, classes], any floating type; divided by t.
    """
    student = F.log_softmax(logits.float() / temperature, 1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, 1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def distance(x: Tensor, target: Tensor, measure: Measure) -> Tensor:
    """How far rows [n, D] are from `target`: float32 [n].

    Args:
        measure: `cosine`, 1 - cos, or `smooth_l1`, the mean over channels.
    """
    x, target = x.float(), target.float()
    match measure:
        case "cosine":
            return 1 - F.cosine_similarity(x, target)
        case "smooth_l1":
            return F.smooth_l1_loss(x, target, reduction="none").mean(1)
        case _ as unknown:
            assert_never(unknown)


def image_means(values: Tensor, batch: PackedBatch) -> Tensor:
    """Means of `values` [T] over the tokens of each image, without padding: float32 [N]."""
    image = batch.image_index.long()
    image = image.where(image >= 0, batch.num_images)
    pairs = torch.stack([values.float(), torch.ones_like(values, dtype=torch.float32)], 1)
    sums, counts = pairs.new_zeros(batch.num_images + 1, 2).index_add(0, image, pairs)[:-1].unbind(1)
    return sums / counts


def sample_tokens(tokens: Tensor, view: PackedBatch, batch: PackedBatch) -> Tensor:
    """A teacher's dense maps, interpolated bilinearly at the centres of the student's kept patches; one
    gather.

    Beyond the centres of the outermost patches, their values are used.

    Args:
        tokens: [T', D] at the slots of `view`, which holds the images of `batch`, in their order and with all
            tokens.

    Returns:
        float32 [T, D] at the slots of `batch`; padding holds anything finite.
    """
    layout = Layout.build(view.cu_seqlens, view.image_index, view.num_images, view.max_len)
    # Padding, image -1, reads the last entry: a map of one patch.
    first = F.pad(layout.cu_seqlens.long()[layout.owner_segment], (0, 1))  # [N + 1] slots
    image = batch.image_index.long()
    theirs = F.pad(view.grids, (0, 0, 0, 1), value=1).long()[image]  # [T, 2]
    own = F.pad(batch.grids, (0, 0, 0, 1), value=1)[image]
    centre = (batch.coords + 0.5 * batch.extents) / own * theirs - 0.5
    centre = centre.clamp(min=0).minimum(theirs - 1)
    low = centre.floor().long()
    high = (low + 1).minimum(theirs - 1)
    part = centre - low
    weights, slots = [], []
    for rows, by_row in ((low, 1 - part), (high, part)):
        for cols, by_col in ((low, 1 - part), (high, part)):
            slots.append(first[image] + rows[:, 0] * theirs[:, 1] + cols[:, 1])
            weights.append(by_row[:, 0] * by_col[:, 1])
    return F.embedding_bag(
        torch.stack(slots, 1), tokens.float(), mode="sum", per_sample_weights=torch.stack(weights, 1)
    )
