"""One sample of a shard on its way: its header, the view it gets, its pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from packvit.data.shards.shard import BadSample, BadShard
from packvit.packing import View


class Reference(NamedTuple):
    """Where a sample is in a run's data; integers only.

    epoch: of its source.
    shard: number of the shard among all of the run.
    member: number of the sample in the shard.
    drawn: good samples that the stream had drawn before.
    """

    epoch: int
    shard: int
    member: int
    drawn: int


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a sample before anything is decoded.

    Args:
        native_size: upright (height, width) of the stored image in pixels.
    """

    reference: Reference
    key: str
    native_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Planned:
    """A sample with its views, one, or two of a pair: what a packer holds."""

    header: Header
    views: tuple[View, ...]

    @property
    def num_tokens(self) -> int:
        """Kept tokens of all views."""
        return sum(view.num_tokens for view in self.views)


class Recalled(NamedTuple):
    """What a state remembers of a planned sample; it is read and its view drawn when it is decoded.

    epoch, shard, member, drawn: its reference. It is flat, as a resumed run may make a million of them.
    """

    epoch: int
    shard: int
    member: int
    drawn: int
    num_tokens: int

    @property
    def reference(self) -> Reference:
        """Where it is."""
        return Reference(*self[:4])


@dataclass(frozen=True, slots=True)
class Mix:
    """What is done to one image.

    Args:
        partner: its number in the batch.
        share: of the own pixels' values; 1 in cutmix.
        box: (top, left, bottom, right) of the partner's rectangle as fractions of the view; empty in mixup.
    """

    partner: int
    share: float = 1.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class Mixing(NamedTuple):
    """How two images are mixed in one view.

    mix: what is done to the pixels.
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
        seed: a function of (seed, epoch, key); decides what is random from here on.
        views: how it is shown, first to the student.
        pixels: uint8 [view.height, view.width, 3] of each view.
        targets: values by name as each view shows them.
        mix, partner: how it is mixed, and with which sample of its batch; None where nothing is mixed.
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
