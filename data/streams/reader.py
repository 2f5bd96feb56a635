"""Read: the order in which a stream takes the samples of its sources, and what their headers say.

A source is a list of shards. Its epochs are cut into units, each a shard or a fixed part of one; a stream
owns every `streams`-th unit of the epoch's permutation. The samples of a few units are shuffled together. The
state of a source is the epoch, the group of units, the place in it and its shards' sizes: a few integers.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from random import Random
from typing import NamedTuple

from packvit.data.samples.decode import read_header
from packvit.data.samples.sample import Header, Reference, describe_skipped
from packvit.data.shards.losses import expected_samples, lost_samples
from packvit.data.shards.redact import redact
from packvit.data.shards.shard import BadSample, BadShard, Shard
from packvit.data.streams.plan import DataPlan
from packvit.data.streams.units import Unit, epoch_units, parts_of_shard
from packvit.packing import derive_seed

# A source is given up after this many samples, or epochs without any, in a row of which none could be used.
BARREN_SAMPLES, BARREN_EPOCHS = 1000, 64
MOST_OPEN = 128  # shards; each holds a descriptor, of which a process often has no more than 1024
PROBED = 16  # shards that are tried for the size of one


class Lost(NamedTuple):
    """Samples that cannot be used.

    line: a line of skipped.jsonl: what was lost, and why.
    samples: how many samples it stands for.
    """

    line: dict
    samples: int


@cache
def _say_once(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def announce(line: dict) -> None:
    """Report on standard error what a shard has lost, once per process; skipped.jsonl has it, too."""
    _say_once(f"warning: {line['shard']}: {line['reason']}")


class SampleReader:
    """The headers of one stream's samples, its sources mixed by weight, forever.

    Args:
        stream: number of the stream, 0..data.streams-1.
    """

    def __init__(self, plan: DataPlan, stream: int) -> None:
        self.plan = plan
        self.stream = stream
        self._opened: dict[int, Shard] = {}
        self._sources = [Source(self, number, shards) for number, shards in enumerate(plan.sources)]
        self._shares = plan.shares
        self._drawn = 0  # good samples in all
        self._taken = [0] * len(self._sources)  # from each source, since its weights are what they are

    def next(self) -> Header | Lost | None:
        """The next sample, from the source that is furthest behind its share, or what was lost on the way.

        None when that source has had no good sample for too long.
        """
        following = sum(self._taken) + 1
        number = max(range(len(self._sources)), key=lambda i: self._shares[i] * following - self._taken[i])
        found = next(self._sources[number].events, None)
        if found is None or isinstance(found, Lost):
            return found
        try:
            header = self.header(found._replace(drawn=self._drawn))
        except BadShard as error:
            self._sources[number].found_bad_shard()
            return Lost(describe_skipped(error), 1)
        except BadSample as error:
            return Lost(describe_skipped(error), 1)
        self._sources[number].found_good()
        self._taken[number] += 1
        self._drawn += 1
        return header

    def header(self, reference: Reference) -> Header:
        """What the file says about a sample before it is decoded.

        Raises:
            BadSample, BadShard: the sample cannot be used.
        """
        return read_header(self.shard(reference.shard), reference)

    def shard(self, number: int) -> Shard:
        """A shard of the run, kept open until `close` if there are not too many; raises like `Shard.open`."""
        if number not in self._opened:
            if len(self._opened) >= MOST_OPEN:
                del self._opened[next(iter(self._opened))]
            shards = self.plan.shards
            self._opened[number] = Shard.open(shards.paths[number], shards.fetch)
        return self._opened[number]

    def close(self) -> None:
        """Forget the open shards, so that a shard that was replaced is noticed."""
        self._opened.clear()

    def first_path(self) -> str:
        """A shard of the source that would be read next, for messages."""
        return redact(self.plan.shards.paths[self.plan.sources[0][0]])

    def state_dict(self) -> dict:
        """The place of each source, and how many good samples it has yielded."""
        return {
            "readers": [source.state() for source in self._sources],
            "drawn": self._drawn,
            "shares": list(self._shares),
            "taken": list(self._taken),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state` was taken; changed weights apply from here on.

        Raises:
            ValueError: the state is of another number of sources.
        """
        if len(state["readers"]) != len(self._sources):
            raise ValueError(
                f"the run was started with data.weights of {len(state['readers'])} sources, not "
                f"{len(self._sources)}: resume with as many"
            )
        for source, place in zip(self._sources, state["readers"], strict=True):
            source.restore(place)
        self._drawn = state["drawn"]
        same = state["shares"] == list(self._shares)
        self._taken = list(state["taken"]) if same else [0] * len(self._sources)


class Source:
    """The references of one source for one stream, forever.

    Args:
        reader: opens its shards.
        number: number of the source.
        shards: numbers of its shards among all shards of the run.

    Attributes:
        events: references, and what was lost; ends when the source has had no good sample for too long.
    """

    def __init__(self, reader: SampleReader, number: int, shards: Sequence[int]) -> None:
        data, seed = reader.plan.data, reader.plan.seed
        self.reader, self.shards = reader, shards
        self.streams, self.group = data.streams, data.shuffle_shards
        self.seed = derive_seed(seed, "source", number) if number else seed
        self.restore([0, 0, 0])

    def state(self) -> list[int]:
        """The epoch, its finished groups, the finished samples of the next group, its shards' sizes."""
        return [self._epoch, self._groups, self._offset, *self._sizes]

    def restore(self, state: Sequence[int]) -> None:
        """Continue where `state` was taken."""
        self._epoch, self._groups, self._offset, *self._sizes = state
        self._failed, self._epochs = 0, 0  # since the last good sample
        self._unit_size: int | None = None
        self.events = self._read()

    def found_good(self) -> None:
        """The last reference was of a sample that can be used."""
        self._failed, self._epochs = 0, 0

    def found_bad_shard(self) -> None:
        """The last reference was into a shard that has become bad, which says nothing about the source."""
        self._failed -= 1

    def _read(self) -> Iterator[Reference | Lost]:
        # An epoch may hold no sample: small or broken shards leave units empty; the next epoch has others.
        while self._failed < BARREN_SAMPLES and self._epochs < BARREN_EPOCHS:
            units = epoch_units(len(self.shards), self.streams, self.reader.stream, self._epoch, self.seed)
            for start in range(self._groups * self.group, len(units), self.group):
                group = units[start : start + self.group]
                # A stream that comes back to the middle of a group goes on in its order, whatever has become
                # of the shards.
                if len(self._sizes) != len(group):
                    yield from self._open(group)
                for shard, member in self._shuffle(group)[self._offset :]:
                    self._offset += 1
                    self._failed += 1
                    yield Reference(self._epoch, self.shards[shard], member, 0)
                    if self._failed >= BARREN_SAMPLES:
                        return
                self._groups += 1
                self._offset, self._sizes = 0, []
            self._epoch += 1
            self._groups = 0
            self._epochs += 1

    def _open(self, units: list[Unit]) -> list[Lost]:
        """Count the samples of these units; returns what is lost of them."""
        lost: list[Lost] = []
        self._sizes = []
        for unit in units:
            try:
                shard = self.reader.shard(self.shards[unit.shard])
            except BadShard as error:
                line, samples = describe_skipped(error), self._samples_of_a_unit(unit.shard)
                announce(line)
                lost.append(Lost(line | {"samples": samples}, samples))
                self._sizes.append(0)
                continue
            if unit.part == 0:
                lost += self._losses(shard)
            self._sizes.append(len(shard))
        return lost

    def _shuffle(self, units: list[Unit]) -> list[tuple[int, int]]:
        """(shard of the source, member) of every sample of these units, in the epoch's order."""
        sizes = zip(units, self._sizes, strict=True)
        members = [(unit.shard, m) for unit, size in sizes for m in range(unit.part, size, unit.parts)]
        first = units[0]
        Random(derive_seed(self.seed, "members", self._epoch, first.shard, first.part)).shuffle(members)
        return members

    def _losses(self, shard: Shard) -> list[Lost]:
        """What is missing from a shard that can be opened."""
        lost = [Lost({"shard": redact(shard.path), "key": None, "reason": p}, 1) for p in shard.problems]
        shards = self.reader.plan.shards
        missing = lost_samples(shard, shards.paths, self.shards, shards.fetch)
        if missing is None:
            return lost
        number, why = missing
        reason = f"{number} samples are missing ({why})"
        if shard.whole_bytes is not None:  # the last problem is where it breaks off
            reason = f"{lost.pop().line['reason']}: {reason}"
        line = {"shard": redact(shard.path), "key": None, "reason": reason, "samples": number}
        announce(line)
        return [*lost, Lost(line, number)]

    def _samples_of_a_unit(self, shard: int) -> int:
        """Samples that a unit of a shard which cannot be read counts for: those that its manifest names, or
        as many as a unit of a shard that can be read."""
        shards = self.reader.plan.shards
        expected = expected_samples(shards.paths[self.shards[shard]], shards.fetch)
        if expected is not None:
            return -(-expected // parts_of_shard(len(self.shards), self.streams))
        if self._unit_size is None:
            self._unit_size = 1
            parts = parts_of_shard(len(self.shards), self.streams)
            for number in self.shards[:PROBED]:
                with suppress(BadShard):
                    self._unit_size = max(1, len(self.reader.shard(number)) // parts)
                    break
        return self._unit_size
