"""The objective: labels or teachers, or both, to one loss of each image.

For every image label_weight * label loss + sum over teachers of (logits_weight * t^2 KL(teacher || student)
+ feature_weight * distance of features + token_weight * mean distance of tokens). FlexiViT 3.5.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from packvit.models import Outputs, PackedViT
from packvit.models.layout import Layout
from packvit.packing import PackedBatch
from packvit.train.config import Config
from packvit.train.distill import EMA
from packvit.train.engine import Engine
from packvit.train.losses import classification_loss, distance, distillation_loss, mixed_labels
from packvit.train.student import StudentOutputs


class Objective:
    """What a step minimises.

    Args:
        teachers: from `load_teachers`; moved to the student's device.
        engine: of the student, whose moving average may be a teacher.
    """

    def __init__(self, config: Config, teachers: dict[str, PackedViT], engine: Engine) -> None:
        self.train = config.train
        self.distill = config.distill
        self.autocast = engine.autocast
        self.teachers: list[PackedViT] = []
        for path in config.distill.teachers:
            teacher = engine.average if path == EMA else teachers[path].to(engine.ranks.device)
            assert teacher is not None
            if teacher is not engine.average:
                engine.compile(teacher)
            self.teachers.append(teacher)

    def __call__(self, student: StudentOutputs, batch: PackedBatch, views: Sequence[PackedBatch]) -> Tensor:
        """The loss of each image of `batch`; float32 [N].

        Args:
            views: the batch's images as each teacher sees them.
        """
        if not self.distill.active:
            return self._label_loss(student, batch)
        # Other ranks wait for a gradient of every parameter, also of a head whose logits have no weight.
        loss = 0 * student.logits.float().sum(1)
        if self.distill.label_weight:
            loss = loss + self.distill.label_weight * self._label_loss(student, batch)
        if batch.logits is not None:
            kl = distillation_loss(student.logits, batch.logits, self.distill.temperature)
            loss = loss + self.distill.logits_weight * kl
        for number, (teacher, view) in enumerate(zip(self.teachers, views, strict=True)):
            with torch.inference_mode(), self.autocast:
                answer = teacher.outputs(view)
            loss = loss + self._teacher_loss(student, batch, number, answer, view)
        return loss

    def _label_loss(self, student: StudentOutputs, batch: PackedBatch) -> Tensor:
        labels = batch.labels
        assert labels is not None
        if batch.mix_labels is not None and batch.mix_weights is not None:
            labels = mixed_labels(labels, batch.mix_labels, batch.mix_weights, student.logits.shape[1])
        return classification_loss(student.logits, labels, self.train.loss, self.train.label_smoothing)

    def _teacher_loss(
        self, student: StudentOutputs, batch: PackedBatch, number: int, answer: Outputs, view: PackedBatch
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


def image_means(values: Tensor, batch: PackedBatch) -> Tensor:
    """Means of `values` [T] over the tokens of each image: float32 [N]; padding counts nowhere."""
    image = batch.image_index.long()
    image = image.where(image >= 0, batch.num_images)
    pairs = torch.stack([values.float(), torch.ones_like(values, dtype=torch.float32)], 1)
    sums, counts = pairs.new_zeros(batch.num_images + 1, 2).index_add(0, image, pairs)[:-1].unbind(1)
    return sums / counts


def sample_tokens(tokens: Tensor, view: PackedBatch, batch: PackedBatch) -> Tensor:
    """A teacher's dense maps, read bilinearly at the centres of the student's kept patches; one gather.

    Beyond the outermost patches' centres these go on.

    Args:
        tokens: [T', D] at the slots of `view`, which holds the images of `batch`, in their order and whole.

    Returns:
        float32 [T, D] at the slots of `batch`; padding holds anything finite.
    """
    layout = Layout.build(view, prefix=0)
    # Padding, image -1, reads the last entry: a map of one patch.
    first = F.pad(layout.cu_seqlens.long()[layout.image_segment], (0, 1))  # [N + 1] slots
    image = batch.image_index.long()
    theirs = F.pad(view.grids, (0, 0, 0, 1), value=1).long()[image]  # [T, 2]
    own = F.pad(batch.grids, (0, 0, 0, 1), value=1)[image]
    centre = (batch.coords + 0.5) / own * theirs - 0.5
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
