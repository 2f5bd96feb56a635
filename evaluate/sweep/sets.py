"""Sets of images with labels that are not a single class of the model, opened for an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from packvit.common.engine.engine import Engine
from packvit.data import BadSample, ClassTarget, EvalSet, FetchConfig, Shard
from packvit.evaluate.measures.calibration import LossKind
from packvit.evaluate.measures.labels import read_label_map, read_label_sets
from packvit.evaluate.sweep.evaluators import Evaluator, MappedAccuracy, Scores, SetAccuracy


class MakeSetEvaluator(Protocol):
    """Makes the evaluator of a set for a model; see `packvit.evaluate.sweep.evaluators.Answers`."""

    def __call__(
        self, loss: LossKind, logits: bool, features: bool, scores: Scores | None = None
    ) -> Evaluator:
        """An evaluator for a model that was trained with a loss."""
        ...


@dataclass(frozen=True)
class OpenedSet:
    """A set, and the evaluator of a model on it."""

    images: EvalSet
    evaluator: MakeSetEvaluator


@dataclass(frozen=True)
class KnownClass(ClassTarget):
    """A label of a set with a label map; samples whose label has no class of the model are skipped.

    Args:
        known: the labels that have classes.
        path: path of the map, for the reason.
    """

    known: tuple[int, ...] = ()
    path: str = ""

    def read(self, shard: Shard, member: int) -> int:
        """See ClassTarget."""
        label = super().read(shard, member)
        if not isinstance(label, int) or label not in self.known:
            raise BadSample(shard.path, shard.key(member), f"{self.path} has no class for its label")
        return label


def open_mapped(
    shards: Sequence[str],
    file: Path | str,
    classes: int,
    field: str,
    fetch: FetchConfig,
    engine: Engine | None = None,
) -> OpenedSet:
    """Open a set that has a label map, without the images whose label has no class of the model.

    Args:
        file: see `read_label_map`.
        classes: the model's number of classes.
        field: field of each sample's label.
        engine: reads the headers; by default this process does.

    Raises:
        ValueError: the file is not a map for this model and set, or no image is left; names the file.
        OSError: the file cannot be read.
    """
    label_map = read_label_map(file)
    label_map.check(classes)
    number = len(label_map.classes)
    target = KnownClass(field, classes=number, known=label_map.columns, path=str(label_map.path))
    images = EvalSet(shards, {"label": target}, fetch, engine=engine)
    if images.unknown_labels:
        first = images.unknown_labels[0]
        raise ValueError(
            f"{label_map.path} has labels 0..{number - 1}, but sample {first['key']!r} of "
            f"{images.described} has another one: {first['reason']}"
        )
    return OpenedSet(images, partial(MappedAccuracy, label_map=label_map))


def open_judged(
    shards: Sequence[str],
    file: Path | str,
    classes: int,
    fetch: FetchConfig,
    engine: Engine | None = None,
) -> OpenedSet:
    """Open a set with several right answers for an image, without the images that have none.

    Args:
        file: see `read_label_sets`.
        classes: the model's number of classes.
        engine: reads the headers; by default this process does.

    Raises:
        ValueError: the file does not hold answers for this model and set; names it.
        OSError: the file cannot be read.
    """
    label_sets = read_label_sets(file)
    label_sets.check(classes)
    images = EvalSet(shards, fetch=fetch, engine=engine)
    answers = label_sets.find([header.key for header in images.headers])
    reason = f"{label_sets.path} has no label for it"
    images = images.without({place: reason for place, own in enumerate(answers) if not own})
    return OpenedSet(images, partial(SetAccuracy, answers=[own for own in answers if own]))
