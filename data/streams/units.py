"""The units of an epoch, each a shard or a fixed part of one, and which stream owns which."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import overload

from packvit.packing import derive_seed

# With so many shards to a stream, whole shards spread evenly enough over the streams.
SHARDS_STAY_WHOLE = 16


@dataclass(frozen=True, slots=True)
class Unit:
    """Members `part`, `part + parts`, ... of a shard."""

    shard: int
    part: int
    parts: int


def parts_of_shard(num_shards: int, streams: int) -> int:
    """How many units a shard is cut into.

    All streams yield the same number of batches, so all should own the same number of units; otherwise the
    samples of some would be seen more often. With many shards per stream the difference is small, and shards
    are not divided.
    """
    return 1 if num_shards >= SHARDS_STAY_WHOLE * streams else streams // math.gcd(num_shards, streams)


class Units(Sequence[Unit]):
    """The units of one stream in one epoch, in order; made when they are asked for.

    Over all streams they cover every sample once. All streams of a process share one permutation, 4 bytes a
    unit of the whole epoch.
    """

    def __init__(self, order: "array[int]", parts: int, stream: int, streams: int) -> None:
        self._order, self._parts = order, parts
        self._places = range(stream, len(order), streams)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Unit: ...

    @overload
    def __getitem__(self, place: slice) -> list[Unit]: ...

    def __getitem__(self, place: int | slice) -> Unit | list[Unit]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        return Unit(*divmod(self._order[self._places[place]], self._parts), self._parts)


def epoch_units(num_shards: int, streams: int, stream: int, epoch: int, seed: int) -> Units:
    """The units of one stream in one epoch; costs nothing if another stream has asked for this epoch's."""
    parts = parts_of_shard(num_shards, streams)
    order = _permutation(num_shards * parts, derive_seed(seed, "units", epoch))
    return Units(order, parts, stream, streams)


@lru_cache(maxsize=8)
def _permutation(length: int, seed: int) -> "array[int]":
    """Kept, because all streams of a process cut their units out of the same one."""
    order = array("I", range(length))
    Random(seed).shuffle(order)
    return order
