"""One sample of a shard on its way: its header, its view, its pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from packvit.data.shards.shard import BadSample, BadShard
from packvit.packing import View


class Reference(NamedTuple):
    """Where a sample is in a run's data; integers only.

    epoch: epoch of its source.
    shard: number of the shard among all shards of the run.
    member: number of the sample in the shard.
    drawn: number of good samples that the stream had drawn before.
    """

    epoch: int
    shard: int
    member: int
    drawn: int


@dataclass(frozen=True, slots=True)
class Header:
    """What is known about a sample before anything is decoded.

    Args:
        native_size: upright (height, width) of the stored image in pixels.
    """

    reference: Reference
    key: str
    native_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Planned:
    """A sample with its views, one or a pair, as a packer holds it.

    What follows from the two is stored, because the state of a stream is written after every batch and names
    hundreds of waiting samples.

    Args:
        num_tokens: kept tokens of all views.
        name: what a state remembers: the fields of `Recalled`. States share the list, so nobody changes it.
    """

    header: Header
    views: tuple[View, ...]
    num_tokens: int = field(init=False, compare=False)
    name: list[int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        num_tokens = sum([view.num_tokens for view in self.views])
        object.__setattr__(self, "num_tokens", num_tokens)
        object.__setattr__(self, "name", [*self.header.reference, num_tokens])


class Recalled(NamedTuple):
    """What a state remembers about a planned sample, which is read and gets its view when it is decoded.

    epoch, shard, member, drawn: its reference, flat because a resumed run may make a million of them.
    """

    epoch: int
    shard: int
    member: int
    drawn: int
    num_tokens: int

    @property
    def reference(self) -> Reference:
        """Its reference."""
        return Reference(*self[:4])

    @property
    def name(self) -> list[int]:
        """What a state remembers; see `Planned`."""
        return list(self)


@dataclass(frozen=True, slots=True)
class Mix:
    """How one image is mixed.

    Args:
        partner: the partner's number in the batch.
        share: share of the image's own pixel values; 1 in cutmix.
        box: (top, left, bottom, right) of the partner's rectangle as fractions of the view; empty in mixup.
    """

    partner: int
    share: float = 1.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class Mixing(NamedTuple):
    """How two images are mixed in one view.

    mix: how the pixels are mixed.
    share: how much of the kept patches is the image's own, 0..1.
    view, partner_view: how the image and its partner are shown.
    """

    mix: Mix
    share: float
    view: View
    partner_view: View


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample's pixels in every view, before they are cut.

    Args:
        key, native_size: see Header.
        seed: a function of (seed, epoch, key), for everything random from here on.
        views: how it is shown; the student's view is the first.
        pixels: uint8 [view.height, view.width, 3] of each view.
        targets: values by name as each view shows them.
        mix, partner: how it is mixed, and with which sample of its batch; None if it is not mixed.
    """

    key: str
    native_size: tuple[int, int]
    seed: int
    views: Sequence[View]
    pixels: Sequence[np.ndarray]
    targets: Sequence[Mapping[str, Any]]
    mix: Mix | None = None
    partner: "Decoded | None" = None


def describe_skipped(error: BadSample | BadShard) -> dict:
    """A line of `skipped.jsonl`: shard, key (None for a whole shard) and reason."""
    if isinstance(error, BadSample):
        return {"shard": error.shard, "key": error.key, "reason": error.reason}
    return {"shard": error.shard, "key": None, "reason": error.reason}
