"""Consistency between budgets: learn from labels, and let an image's features agree at two sizes.

Every sample is shown twice in one sequence (`DataPlan.pairs`), so no rank, batch or step ever holds half of a
pair. The loss of every image is that of its label + weight * distance of the pair's features. The distance
has a gradient only for the image with fewer tokens: the features of the other one are its target.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from packvit.data import LoadedBatch, Target
from packvit.evaluate import MakeEvaluator
from packvit.models import PackedViT
from packvit.packing import PackedBatch
from packvit.packing.packers.config import SHORTENING
from packvit.train.config import Config
from packvit.train.step.interface import StepBatches, TrainedModule
from packvit.train.step.step import Engine
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.config import Measure
from packvit.train.tasks.distillation import distance


class Consistency:
    """Classification of pairs whose features should agree; see Task.

    Raises:
        ValueError: a field is incompatible with pairs; names it; see also Classification.
    """

    teachers: tuple[tuple[int, int], ...] = ()

    def __init__(self, config: Config) -> None:
        refuse_others(config)
        self.consistency = config.consistency
        self.labels = Classification(config)
        self.targets: Mapping[str, Target] = self.labels.targets
        self.eval_targets: Mapping[str, Target] = self.labels.eval_targets
        self.evaluators: Sequence[MakeEvaluator] = self.labels.evaluators

    def initial(self) -> None:
        """See Task."""

    def build(self, model: PackedViT) -> TrainedModule:
        """See Task."""
        return WithFeatures(model)

    def prepare(self, engine: Engine) -> None:
        """See Task."""

    def flops(self, loaded: LoadedBatch, depth: int | None = None) -> int:
        """See Task; both images of a pair are in the batch, and their distance costs no product."""
        return self.labels.flops(loaded, depth)

    def backward(self, engine: Engine, step: StepBatches) -> Tensor:
        """See Task; reports `consistency`, the mean distance of pairs."""

        def loss(outputs: tuple[Tensor, Tensor], loaded: LoadedBatch) -> Tensor:
            logits, features = outputs
            each = self.labels.loss(logits, loaded.batch)  # [N]
            apart = pair_distances(features, loaded.batch.image_lengths(), self.consistency.measure)
            engine.report("consistency", apart)
            return each + self.consistency.weight * apart.repeat_interleave(2)

        return engine.backward_by_image(step, loss)


class WithFeatures(TrainedModule):
    """A model that returns its logits and features."""

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Logits [N, classes], features [N, feature_dim]."""
        outputs = self.model.outputs(batch)
        return outputs.logits, outputs.features


def pair_distances(features: Tensor, tokens: Tensor, measure: Measure) -> Tensor:
    """The distance of each pair's image with fewer tokens from the other one, which gets no gradient.

    Args:
        features: [N, D]; images 2i and 2i + 1 are a pair.
        tokens: [N], tokens of each image; if they are equal, the first image is pulled to the second.
        measure: see `distance`.

    Returns:
        float32 [N / 2].
    """
    first, second = features.unflatten(0, (-1, 2)).unbind(1) if len(features) else (features, features)
    is_larger = (tokens[::2] > tokens[1::2])[:, None]
    smaller, larger = second.where(is_larger, first), first.where(is_larger, second)
    return distance(smaller, larger.detach(), measure)


def refuse_others(config: Config) -> None:
    """Refuse fields that are incompatible with pairs.

    Raises:
        ValueError: names the field.
    """
    if config.distill.active:
        raise ValueError(
            "consistency.weight and distill.* are two tasks: give one (distill.teachers=ema with "
            "distill.feature_weight compares every image with the moving average at one large budget)"
        )
    if config.contrastive.loss:
        raise ValueError("consistency.weight and contrastive.loss are two tasks: give one")
    if config.views.patch_size_per != "image":
        raise ValueError("consistency.weight pairs patch sizes in a sequence: set views.patch_size_per=image")
    if config.packing.algorithm in SHORTENING:
        raise ValueError(
            f"consistency.weight: packing.algorithm={config.packing.algorithm} would drop tokens of one "
            "image of a pair: use oldest_first"
        )
    if config.packing.oversize == "own_row":
        raise ValueError("consistency.weight: a pair stays in one sequence: set packing.oversize=shrink")
    if config.packing.seq_len < 2 or config.packing.sequence_images == 1:
        raise ValueError(
            "consistency.weight: a sequence must have room for two images: raise packing.seq_len, "
            "packing.max_images or packing.max_batch_images"
        )
