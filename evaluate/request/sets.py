"""The sets of a request, opened."""

from collections.abc import Mapping
from dataclasses import dataclass

from packvit.common.engine.engine import Engine
from packvit.data import ClassTarget, EvalSet, Target
from packvit.evaluate.checks import check_classes
from packvit.evaluate.request.request import NamedSet, Request
from packvit.evaluate.request.words import Words
from packvit.evaluate.sweep.sets import MakeSetEvaluator, open_judged, open_mapped
from packvit.evaluate.texts.retrieval import SetCaptions, SideCaptions, read_set_captions


@dataclass(frozen=True)
class OpenedImages:
    """A set, and what there is to measure on it.

    Args:
        classes: number of classes of its labels; 0: no classification is measured.
        make: makes the evaluator of labels that are not a single class of the model.
        captions: for retrieval, or None.
    """

    images: EvalSet
    classes: int
    make: MakeSetEvaluator | None = None
    captions: SetCaptions | None = None

    @property
    def plain(self) -> bool:
        """Whether the evaluators of the main set measure it, too."""
        return self.make is None and self.captions is None


def open_sets(
    named: Mapping[str, NamedSet],
    request: Request,
    classes: int,
    words: Words | None,
    model: str,
    engine: Engine | None = None,
) -> dict[str, OpenedImages]:
    """The sets by name.

    Args:
        classes: the models' number of classes; 0: no classification.
        words: words for two towers, or None.
        model: the first one's name, for messages.
        engine: reads the headers; by default this process does.

    Raises:
        ValueError: a set is empty, has labels of other classes, or a file does not fit.
        OSError: a file cannot be read.
    """
    label_field, fetch = request.label_field or "cls", request.fetch
    targets: dict[str, Target] = {}
    if classes:
        targets["label"] = ClassTarget(label_field, request.multi_label, classes)
    if words is not None and words.captions:
        targets["caption"] = SideCaptions(words.captions)
    opened = {}
    for name, own in named.items():
        if own.label_map is not None:
            found = open_mapped(own.shards, own.label_map, classes, label_field, fetch, engine)
        elif own.label_sets is not None:
            found = open_judged(own.shards, own.label_sets, classes, fetch, engine)
        else:
            images = EvalSet(own.shards, targets, fetch, engine=engine)
            if words is not None and words.names:
                check_classes(images, classes, words.source, "names and labels must be of the same classes")
            elif classes:
                check_classes(images, classes, model)
            captions = read_set_captions(images, words.captions) if words and words.captions else None
            opened[name] = OpenedImages(images, classes, captions=captions)
            continue
        opened[name] = OpenedImages(found.images, classes, found.evaluator)
    return opened
