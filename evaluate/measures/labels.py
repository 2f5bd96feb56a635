"""Labels that are not a single class of the model: maps onto its classes, and sets of right answers.

Sets with other classes, such as ImageNet-A, ImageNet-R and ObjectNet, are evaluated in the same way as by
their authors and the ImageNet testbed (arXiv 1907.07174, 2006.16241, 2007.00644): the model chooses among
those of its classes that the set has, and is right if its choice is one of the label's classes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# How the validation images of ImageNet are called; ReaL's own file names them by number alone.
IMAGENET_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")


class Restricted(NamedTuple):
    """A model's answers for a set with a label map, ready for the measures of an ordinary set.

    Attributes:
        logits: [M, K], one column for each label of the set that has classes.
        labels: int64 [M], columns of `logits`.
        kept: bool [N]; the M images whose label has classes.
    """

    logits: Tensor
    labels: Tensor
    kept: Tensor


@dataclass(frozen=True)
class LabelMap:
    """The classes of the model that correspond to each label of a set.

    Args:
        path: path of the file, for messages.
        classes: by label; empty for a label that the model does not know.
    """

    path: Path
    classes: tuple[tuple[int, ...], ...]

    @property
    def columns(self) -> tuple[int, ...]:
        """The label of each column of `Restricted.logits`: those that have classes, in their order."""
        return tuple(label for label, indices in enumerate(self.classes) if indices)

    def check(self, num_classes: int) -> None:
        """Refuse a map for another model.

        Raises:
            ValueError: a class index is not below `num_classes`; names the file and the label.
        """
        for label, indices in enumerate(self.classes):
            for index in indices:
                if index >= num_classes:
                    raise ValueError(
                        f"{self.path}: label {label} has class {index}, but the model's classes are "
                        f"0..{num_classes - 1}"
                    )

    def restrict(self, logits: Tensor) -> Tensor:
        """[N, K]: for each label that has classes, the largest logit among them.

        The largest of these is the largest among all mapped classes, so the prediction is that of the
        ImageNet testbed.

        Args:
            logits: [N, classes of the model].
        """
        return torch.stack([logits[:, list(self.classes[label])].amax(1) for label in self.columns], 1)

    def apply(self, logits: Tensor, labels: Tensor) -> Restricted:
        """The answers among the set's labels; images whose label the model does not know are left out.

        Args:
            logits: [N, classes of the model].
            labels: int64 [N], labels of the set; -1 for an image without one.

        Raises:
            ValueError: a label is not in the map, or no label has classes.
        """
        if len(labels) and int(labels.max()) >= len(self.classes):
            raise ValueError(
                f"{self.path} has no label {int(labels.max())}, which an image of the set has: its labels "
                f"are 0..{len(self.classes) - 1}"
            )
        column = torch.full((len(self.classes) + 1,), -1, device=logits.device)
        column[list(self.columns)] = torch.arange(len(self.columns), device=logits.device)
        targets = column[labels.to(logits.device)]  # label -1 finds the last place, which is -1
        kept = targets >= 0
        if len(labels) and not kept.any():
            raise ValueError(f"{self.path} names no class of the model for any image of the set")
        return Restricted(self.restrict(logits[kept]), targets[kept], kept)


def read_label_map(path: Path | str) -> LabelMap:
    """Read a label map: {"LABEL": CLASS or [CLASSES], ...}, or a list of these in the labels' order.

    Labels are the whole numbers in the set's shards, classes the model's indices. A label that is missing, or
    has an empty list, is unknown to the model.

    Raises:
        ValueError: the file is not such a map, or gives a class to two labels; names the file and the entry.
        OSError: the file cannot be read.
    """
    path = Path(path)
    found = _read_json(path)
    entries = found if isinstance(found, dict) else dict(enumerate(found))
    classes: dict[int, tuple[int, ...]] = {}
    label_of: dict[int, int] = {}
    for name, value in entries.items():
        if not re.fullmatch(r"0|[1-9]\d{0,8}", str(name)):
            raise ValueError(f"{path}: entry {name!r} is not a label of a set, which is a whole number")
        label = int(name)
        classes[label] = _read_indices(path, name, [value] if isinstance(value, int) else value)
        for index in classes[label]:
            if index in label_of:
                raise ValueError(f"{path}: labels {label_of[index]} and {label} both have class {index}")
            label_of[index] = label
    if not label_of:
        raise ValueError(f"{path} names no class for any label")
    return LabelMap(path, tuple(classes.get(label, ()) for label in range(max(classes) + 1)))


@dataclass(frozen=True)
class LabelSets:
    """The right answers for each image, as in ReaL (arXiv 2006.07159).

    Args:
        path: path of the file, for messages.
        entries: right classes by key, or in the images' order.
    """

    path: Path
    entries: Mapping[str, frozenset[int]] | Sequence[frozenset[int]]

    def check(self, num_classes: int) -> None:
        """Refuse answers for another model.

        Raises:
            ValueError: a class index is not below `num_classes`; names the file and the entry.
        """
        entries = self.entries
        for name, classes in entries.items() if isinstance(entries, Mapping) else enumerate(entries):
            if max(classes, default=0) >= num_classes:
                raise ValueError(
                    f"{self.path}: entry {name!r} has class {max(classes)}, but the model's classes are "
                    f"0..{num_classes - 1}"
                )

    def find(self, keys: Sequence[str]) -> list[frozenset[int]]:
        """The right classes of each image; none for an image that the file gives no label.

        A list is in the order of the sorted keys, like ReaL's own file. If all keys are names of ImageNet's
        validation images, the number in the name is used instead, so some of the images may be missing.

        Args:
            keys: keys of the images in their shards.

        Raises:
            ValueError: a list does not have as many entries as there are images, or no image has a label.
        """
        nothing = frozenset[int]()
        if isinstance(self.entries, Mapping):
            found = [self.entries.get(key, nothing) for key in keys]
        else:
            found = self._find_in_order(keys, self.entries)
        if not any(found):
            raise ValueError(f"{self.path} has a label for none of the {len(keys)} images")
        return found

    def _find_in_order(self, keys: Sequence[str], entries: Sequence[frozenset[int]]) -> list[frozenset[int]]:
        names = [IMAGENET_VALIDATION.search(key) for key in keys]
        if all(names):
            places = [int(name[1]) - 1 for name in names if name]
            for key, place in zip(keys, places, strict=True):
                if not 0 <= place < len(entries):
                    raise ValueError(f"{self.path} has {len(entries)} entries, and none for image {key!r}")
            return [entries[place] for place in places]
        if len(entries) != len(keys):
            raise ValueError(
                f"{self.path} has {len(entries)} entries for {len(keys)} images: write an object with the "
                "images' keys instead of a list"
            )
        order = sorted(range(len(keys)), key=lambda i: keys[i])
        found = [frozenset[int]()] * len(keys)
        for entry, image in zip(entries, order, strict=True):
            found[image] = entry
        return found


def read_label_sets(path: Path | str) -> LabelSets:
    """Read the right answers of each image: {"KEY": [CLASSES], ...}, or a list of lists.

    Raises:
        ValueError: the file has another content; names the file and the entry.
        OSError: the file cannot be read.
    """
    path = Path(path)
    found = _read_json(path)
    if isinstance(found, dict):
        return LabelSets(path, {key: frozenset(_read_indices(path, key, found[key])) for key in found})
    return LabelSets(path, [frozenset(_read_indices(path, i, entry)) for i, entry in enumerate(found)])


def judge(predictions: Tensor, sets: Sequence[frozenset[int]]) -> tuple[Tensor, Tensor]:
    """Whether each prediction is one of the right answers; ReaL accuracy is the mean of the first.

    Args:
        predictions: int64 [N], class indices.
        sets: the right answers for each image; an image without any is not judged.

    Returns:
        bool [M] for the images that are judged, and bool [N], whether each image is judged.
    """
    kept = torch.tensor([bool(answers) for answers in sets], dtype=torch.bool)
    pairs = zip(predictions.tolist(), sets, strict=True)
    return torch.tensor([found in answers for found, answers in pairs], dtype=torch.bool)[kept], kept


def _read_json(path: Path) -> dict[str, Any] | list[Any]:
    """An object, in which no name appears twice, or a list."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"entry {name!r} appears twice")
            found[name] = value
        return found

    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict | list):
        raise ValueError(f"{path} holds neither an object nor a list")
    return found


def _read_indices(path: Path, entry: str | int, value: Any) -> tuple[int, ...]:
    """A list of different class indices."""
    good = isinstance(value, list) and all(type(index) is int and index >= 0 for index in value)
    if not good or len(set(value)) < len(value):
        raise ValueError(f"{path}: entry {entry!r} is {value!r}, not a list of different class indices")
    return tuple(value)
