"""Targets: what belongs to an image besides its pixels.

Each kind knows how its value is read from a sample's fields, which of several values an epoch draws, how the
value follows the image into a view (crop, flip, resize), how it changes when images are mixed, and how the
values of a batch are collated. A new kind is a class here or anywhere else; a task names the kinds that it
needs, and no other code knows them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from packvit.data.samples.sample import Mixing
from packvit.data.shards.shard import BadSample, Shard, UnknownLabel
from packvit.packing import Collated, Mixed, PackedImage, View, stack


class Target:
    """A kind of target. Values may be anything; None means that a sample has no value and needs none."""

    def read(self, shard: Shard, member: int) -> Any:
        """The value of a sample.

        Raises:
            BadSample: the sample lacks it, or it cannot be used.
        """
        raise NotImplementedError

    def draw(self, value: Any, seed: int) -> Any:
        """The value of a sample in this epoch, if it has several; by default the value that was read.

        Args:
            seed: a function of (seed, epoch, key).

        Raises:
            ValueError: it cannot be used, which makes the sample a bad one.
        """
        return value

    def follow(self, value: Any, view: View, native_size: tuple[int, int]) -> Any:
        """The value as a view shows it; by default a view changes nothing.

        Args:
            view: its box is the crop in native pixels; `flip` mirrors left and right afterwards.
            native_size: (height, width) of the stored image.

        Raises:
            ValueError: the value does not fit the image, which makes the sample a bad one.
        """
        return value

    def mix(self, own: Any, partner: Any, mixing: Mixing) -> Any:
        """The value of a mixed image; by default its own.

        Args:
            own, partner: values of the image and of the one that it is mixed with, each as its own view shows
                it; the partner's pixels are resized to the image's view.
        """
        return own

    def collate(self, values: Sequence[Any]) -> Collated | None:
        """The collated values of a batch, empty without images; None if an image has no value."""
        raise NotImplementedError


def collate_targets(kinds: Mapping[str, Target], images: Sequence[PackedImage]) -> dict[str, Collated]:
    """The targets of a batch; a target that some images lack is left out."""
    collated = {name: kind.collate([image.targets[name] for image in images]) for name, kind in kinds.items()}
    return {name: values for name, values in collated.items() if values is not None}


class MixedClass(NamedTuple):
    """The classes of a mixed image, its own and its partner's, and its own share."""

    own: int | np.ndarray
    partner: int | np.ndarray
    share: float


@dataclass(frozen=True)
class ClassTarget(Target):
    """A class index, or a vector over the classes: where samples hold it, and which values are valid.

    Args:
        field: `cls`, or another field with a whole number as text; `json:PLACE`, a dotted name inside a JSON
            document, or `json`, the document itself; with `multi` also `NAME.npy`, a vector over the classes.
        multi: an image has any number of classes. In JSON it is then a list of them.
        classes: labels lie in 0..classes-1; None accepts any label, and samples without one.
    """

    field: str = "cls"
    multi: bool = False
    classes: int | None = None

    def __post_init__(self) -> None:
        name, colon, place = self.field.partition(":")
        # Fields are kept in small letters, and a name that begins with an underscore is webdataset's own.
        if not re.fullmatch(r"[^/A-Z_][^/A-Z]*", name) or (colon and (not place or suffix(name) != "json")):
            raise ValueError(
                f"data.label_field={self.field!r} must be in lower case, such as cls, json:label or "
                "targets.npy"
            )
        if suffix(name) == "npy" and not self.multi:
            raise ValueError(f"data.label_field={self.field!r} holds vectors: set data.multi_label")

    def read(self, shard: Shard, member: int) -> int | np.ndarray | None:
        """The class index; with `multi`, one target for each class: uint8 or float32 [classes].

        None if `classes` is None and the sample has no label, or has a list, whose vector needs `classes`.

        Raises:
            BadSample: there is no label, or it has another kind.
            UnknownLabel: a label is out of range, or a vector has another length.
        """
        label = self.find(shard, member)
        if self.classes is None:
            return label if isinstance(label, int) and not self.multi else None
        if label is None:
            raise BadSample(shard.path, shard.key(member), "it has no label")
        if isinstance(label, np.ndarray):
            if len(label) != self.classes:
                reason = f"its label has {len(label)} classes, not {self.classes}"
                raise UnknownLabel(shard.path, shard.key(member), reason)
            return label
        indices = [label] if isinstance(label, int) else label
        for index in indices:
            if not 0 <= index < self.classes:
                reason = f"its label {index} is not in 0..{self.classes - 1}"
                raise UnknownLabel(shard.path, shard.key(member), reason)
        if isinstance(label, int) and not self.multi:
            return label
        hot = np.zeros(self.classes, np.uint8)
        hot[indices] = 1
        return hot

    def find(self, shard: Shard, member: int) -> int | list[int] | np.ndarray | None:
        """A label as it is stored, with any range and length; None if there is none.

        Raises:
            BadSample: it has another kind.
        """
        name, _, place = self.field.partition(":")
        if name not in shard.fields(member):
            return None
        if suffix(name) == "npy":
            return self._vector(shard, member, name)
        if suffix(name) == "json":
            return self._in_json(shard, member, name, place)
        return shard.label(member, name)

    def _in_json(self, shard: Shard, member: int, name: str, place: str) -> int | list[int] | None:
        value = json_value(shard, member, name, place)
        if value is None or is_whole(value):
            return value
        if self.multi and isinstance(value, list) and all(map(is_whole, value)):
            return value
        wanted = "list of whole numbers" if self.multi else "whole number"
        raise BadSample(shard.path, shard.key(member), f"its label {str(value)[:40]!r} is not a {wanted}")

    def _vector(self, shard: Shard, member: int, name: str) -> np.ndarray:
        vector = shard.array(member, name)
        if vector.ndim != 1 or vector.dtype.kind not in "buif" or not ((vector >= 0) & (vector <= 1)).all():
            found = f"{vector.dtype} {list(vector.shape)}"
            reason = f"its .{name} holds {found}, not a vector of numbers from 0 to 1"
            raise BadSample(shard.path, shard.key(member), reason)
        return vector.astype(np.float32 if vector.dtype.kind == "f" else np.uint8)

    def mix(
        self, own: int | np.ndarray | None, partner: int | np.ndarray | None, mixing: Mixing
    ) -> MixedClass | None:
        """See Target; None if either image has no label."""
        return None if own is None or partner is None else MixedClass(own, partner, mixing.share)

    def collate(self, values: Sequence[Any]) -> Collated | None:
        """int64 [N], or uint8 or float32 [N, classes]; of mixed images a `Mixed` of two of them."""
        if any(value is None for value in values):
            return None
        if not values:
            return torch.empty(0, dtype=torch.int64)
        if not isinstance(values[0], MixedClass):
            return stack(values)
        own, partner = (stack([value[place] for value in values]) for place in (0, 1))
        assert isinstance(own, torch.Tensor)
        assert isinstance(partner, torch.Tensor)
        return Mixed(own, partner, torch.tensor([value.share for value in values], dtype=torch.float32))


@dataclass(frozen=True)
class LogitsTarget(Target):
    """A teacher's logits in the shards, as `packvit teach` writes them.

    Args:
        field: field of every sample, a .npy file of floats [classes].
        classes: the student's number of classes.
    """

    field: str
    classes: int

    def read(self, shard: Shard, member: int) -> np.ndarray:
        """float [classes], as it is stored.

        Raises:
            BadSample: the sample lacks them, or they have another shape or are not numbers.
        """
        logits = shard.array(member, self.field)
        if logits.shape != (self.classes,) or logits.dtype.kind != "f":
            raise BadSample(
                shard.path,
                shard.key(member),
                f"its .{self.field} holds {logits.dtype} {list(logits.shape)}, not floats [{self.classes}]",
            )
        return logits

    def collate(self, values: Sequence[np.ndarray]) -> Collated:
        """Floating [N, classes]."""
        return stack(values) if values else torch.empty(0, self.classes)


@dataclass(frozen=True)
class TextTarget(Target):
    """A text about the image, such as a caption.

    Args:
        field: field of every sample, such as `txt`.
    """

    field: str

    def read(self, shard: Shard, member: int) -> str:
        """The text, stripped.

        Raises:
            BadSample: the sample lacks the field, or it is not UTF-8.
        """
        try:
            return shard.read(member, self.field).decode().strip()
        except UnicodeDecodeError as error:
            raise BadSample(shard.path, shard.key(member), f"its .{self.field} is not UTF-8 text") from error

    def collate(self, values: Sequence[str]) -> list[str]:
        """N texts."""
        return list(values)


def json_value(shard: Shard, member: int, name: str, place: str) -> Any:
    """The value in a JSON field of a sample at `place`, a dotted name, or the whole document; None if there
    is none.

    Raises:
        BadSample: the sample lacks the field, or it is not a JSON document.
    """
    document = shard.read(member, name)
    try:
        value: Any = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise BadSample(shard.path, shard.key(member), f"its .{name} is not a JSON document") from error
    for part in place.split(".") if place else ():
        value = value.get(part) if isinstance(value, dict) else None
    return value


def suffix(name: str) -> str:
    """The part of a field's name that says how it is read: all of it, or the part after its last dot."""
    return name.rpartition(".")[2]


def is_whole(value: object) -> bool:
    """Whether a JSON value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
