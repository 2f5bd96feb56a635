"""In which order a stream reads the samples of one source.

A source is a list of shards. Its epochs are cut into units, a shard or a fixed part of one; a stream owns
every `streams`-th unit of the epoch's permutation. The samples of a few units are shuffled together. The
state is the epoch, the group of units and the place in it: three integers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from random import Random

from packvit.data.samples import describe_skipped
from packvit.data.shards import BadShard, Shard
from packvit.packing import derive_seed

# A source is given up after this many samples, or epochs without any, in a row of which none could be used.
BARREN_SAMPLES, BARREN_EPOCHS = 1000, 64


@dataclass(frozen=True, slots=True)
class Unit:
    """Members `part`, `part + parts`, ... of a shard."""

    shard: int
    part: int
    parts: int


def parts_of_shard(num_shards: int, streams: int) -> int:
    """How many units a shard is cut into.

    All streams give equally many batches, so all should own equally many units: otherwise the samples of some
    would be seen more often. With many shards to a stream the difference is small and shards stay whole.
    """
    return 1 if num_shards >= 16 * streams else streams // math.gcd(num_shards, streams)


def epoch_units(num_shards: int, streams: int, stream: int, epoch: int, seed: int) -> list[Unit]:
    """The units of one stream in one epoch, in order; over all streams they cover every sample once."""
    parts = parts_of_shard(num_shards, streams)
    units = [Unit(shard, part, parts) for shard in range(num_shards) for part in range(parts)]
    Random(derive_seed(seed, "units", epoch)).shuffle(units)
    return units[stream::streams]


class Reader:
    """The references (epoch, shard, member) of one source for one stream, for ever.

    Args:
        shards: numbers of the source's shards among all of the run.
        open_shard: gives a shard by its number.
        stream, streams: this stream's number, and how many there are.
        group: units whose samples are shuffled together.
        seed: of the source.
        lose: called with a line of skipped.jsonl and the number of samples it stands for.
    """

    def __init__(
        self,
        shards: Sequence[int],
        open_shard: Callable[[int], Shard],
        stream: int,
        streams: int,
        group: int,
        seed: int,
        lose: Callable[[dict, int], None],
    ) -> None:
        self.shards, self.open_shard = shards, open_shard
        self.stream, self.streams, self.group, self.seed, self.lose = stream, streams, group, seed, lose
        self.restore([0, 0, 0])

    def state(self) -> list[int]:
        """Epoch, groups of it that are done, samples of the next group that are done."""
        return [self._epoch, self._groups, self._offset]

    def restore(self, state: Sequence[int]) -> None:
        """Go on where `state` was taken."""
        self._epoch, self._groups, self._offset = state
        self._failed, self._epochs = 0, 0  # since the last good sample
        self._references = self._read()

    def next(self) -> tuple[int, int, int] | None:
        """The next reference; None when the source has had no good sample for too long."""
        self._failed += 1
        return next(self._references, None)

    def good(self) -> None:
        """The last reference was of a sample that can be used."""
        self._failed, self._epochs = 0, 0

    def _read(self) -> Iterator[tuple[int, int, int]]:
        # An epoch may hold no sample: small or broken shards leave units empty; the next epoch has others.
        while self._failed <= BARREN_SAMPLES and self._epochs < BARREN_EPOCHS:
            units = epoch_units(len(self.shards), self.streams, self.stream, self._epoch, self.seed)
            for start in range(self._groups * self.group, len(units), self.group):
                for shard, member in self._shuffled(units[start : start + self.group])[self._offset :]:
                    self._offset += 1
                    yield self._epoch, self.shards[shard], member
                    if self._failed > BARREN_SAMPLES:
                        return
                self._groups += 1
                self._offset = 0
            self._epoch += 1
            self._groups = 0
            self._epochs += 1

    def _shuffled(self, units: list[Unit]) -> list[tuple[int, int]]:
        """(shard of the source, member) of every sample of these units, in the epoch's order."""
        members = []
        for unit in units:
            try:
                shard = self.open_shard(self.shards[unit.shard])
            except BadShard as error:
                self._lose(describe_skipped(error), self._unit_size)
                continue
            for problem in shard.problems if unit.part == 0 else ():
                self._lose({"shard": shard.path, "key": None, "reason": problem}, 1)
            members += [(unit.shard, member) for member in range(unit.part, len(shard), unit.parts)]
        first = units[0]
        Random(derive_seed(self.seed, "members", self._epoch, first.shard, first.part)).shuffle(members)
        return members

    def _lose(self, problem: dict, samples: int) -> None:
        """Report a loss, but not again when a resumed stream comes back to the middle of a group."""
        if self._offset == 0:
            self.lose(problem, samples)

    @cached_property
    def _unit_size(self) -> int:
        """Samples that a shard which cannot be read counts for: as many as a unit of one that can."""
        for shard in self.shards:
            with suppress(BadShard):
                return max(1, len(self.open_shard(shard)) // parts_of_shard(len(self.shards), self.streams))
        return 1
