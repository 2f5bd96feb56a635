"""Labels: a whole number in a text, a place in a JSON document, or a vector over the classes."""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from packvit.data.shards import BadSample, Shard


@dataclass(frozen=True)
class Labels:
    """Where samples keep their labels, and which are good.

    Args:
        field: `cls`, or another field with a whole number as text; `json:PLACE`, a dotted name inside a JSON
            document, or `json`, the document itself; with `multi` also `NAME.npy`, a vector over the classes.
        multi: an image has any number of classes. In JSON it is then a list of them.
        classes: labels lie in 0..classes-1; None accepts any, and none.
    """

    field: str = "cls"
    multi: bool = False
    classes: int | None = None

    def __post_init__(self) -> None:
        name, colon, place = self.field.partition(":")
        # Fields are kept in small letters, and a name that begins with an underscore is webdataset's own.
        if not re.fullmatch(r"[^/A-Z_][^/A-Z]*", name) or (colon and (not place or suffix(name) != "json")):
            raise ValueError(
                f"data.label_field={self.field!r} must be in small letters, such as cls, json:label or "
                "targets.npy"
            )
        if suffix(name) == "npy" and not self.multi:
            raise ValueError(f"data.label_field={self.field!r} holds vectors: set data.multi_label")

    def read(self, shard: Shard, member: int) -> int | np.ndarray | None:
        """The class index; with `multi`, one target for each class: uint8 or float32 [classes].

        None where `classes` is None and there is no label, or no number of classes to make a vector of.

        Raises:
            BadSample: there is none, one is out of range, or a vector is of another length.
        """
        label = self.find(shard, member)
        if self.classes is None:
            return label if isinstance(label, int) and not self.multi else None
        if label is None:
            raise BadSample(shard.path, shard.key(member), "it has no label")
        if isinstance(label, np.ndarray):
            if len(label) != self.classes:
                reason = f"its label has {len(label)} classes, not {self.classes}"
                raise BadSample(shard.path, shard.key(member), reason)
            return label
        indices = [label] if isinstance(label, int) else label
        for index in indices:
            if not 0 <= index < self.classes:
                reason = f"its label {index} is not in 0..{self.classes - 1}"
                raise BadSample(shard.path, shard.key(member), reason)
        if isinstance(label, int) and not self.multi:
            return label
        hot = np.zeros(self.classes, np.uint8)
        hot[indices] = 1
        return hot

    def find(self, shard: Shard, member: int) -> int | list[int] | np.ndarray | None:
        """A label as it stands, of whatever range and length; None without one.

        Raises:
            BadSample: it is of another kind.
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
        document = shard.read(member, name)
        try:
            value: Any = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise BadSample(shard.path, shard.key(member), f"its .{name} is no JSON document") from error
        for part in place.split(".") if place else ():
            value = value.get(part) if isinstance(value, dict) else None
        if value is None or is_whole(value):
            return value
        if self.multi and isinstance(value, list) and all(map(is_whole, value)):
            return value
        wanted = "list of whole numbers" if self.multi else "whole number"
        raise BadSample(shard.path, shard.key(member), f"its label {str(value)[:40]!r} is no {wanted}")

    def _vector(self, shard: Shard, member: int, name: str) -> np.ndarray:
        vector = shard.array(member, name)
        if vector.ndim != 1 or vector.dtype.kind not in "buif" or not ((vector >= 0) & (vector <= 1)).all():
            found = f"{vector.dtype} {list(vector.shape)}"
            reason = f"its .{name} holds {found}, not a vector of numbers from 0 to 1"
            raise BadSample(shard.path, shard.key(member), reason)
        return vector.astype(np.float32 if vector.dtype.kind == "f" else np.uint8)


def read_caption(shard: Shard, member: int, name: str) -> str:
    """The text in a field, without space at its ends.

    Raises:
        BadSample: the sample lacks the field, or it is not UTF-8.
    """
    try:
        return shard.read(member, name).decode().strip()
    except UnicodeDecodeError as error:
        raise BadSample(shard.path, shard.key(member), f"its .{name} is no UTF-8 text") from error


def suffix(name: str) -> str:
    """What tells how a field is read: all, or what follows its last dot."""
    return name.rpartition(".")[2]


def is_whole(value: object) -> bool:
    """Whether JSON wrote a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
