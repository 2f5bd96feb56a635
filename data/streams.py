"""Logical data streams: which sample comes when, whatever the number of processes.

The run's data is cut into a fixed number of streams. Batch k of the run comes from stream k mod
streams, so the order of batches depends neither on workers nor on ranks. A stream owns every
`streams`-th unit of the epoch's permutation; a unit is a shard or, when there are fewer shards than
streams, a fixed part of one. The samples of a few units are shuffled together and each gets a view
drawn from (seed, epoch, key), which the stream's packer puts into sequences. Nothing is decoded before
its sequence is full, so the whole state of a stream is where it reads and which samples wait.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random

from packvit.data.fetch import FetchConfig
from packvit.data.samples import describe_skipped, load_sample
from packvit.data.shards import BadSample, BadShard, Shard
from packvit.packing import (
    Dealer,
    PackedBatch,
    PackedImage,
    PackingConfig,
    View,
    ViewsConfig,
    derive_seed,
    draw_view,
)

STATE_VERSION = 2

# A stream gives up after this many samples, or epochs without any, in a row of which none could be used.
BARREN_SAMPLES, BARREN_EPOCHS = 1000, 64


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from.

    Args:
        shards, val_shards: tar files, plain or gzipped, brace patterns, globs, folders or URLs (`https://...`,
            `pipe:COMMAND`, what else webdataset's gopen knows), for training and validation.
        workers: processes of each rank that read and decode; 0 does it in the trainer.
        streams: logical streams; a multiple of the number of ranks. Part of the run's identity.
        shuffle_shards: units (see above) whose samples are shuffled together.
        fetch: how remote and gzipped shards are fetched.
        max_bad_fraction: the run stops when more than this share of the samples had to be skipped.
    """

    shards: tuple[str, ...] = ()
    val_shards: tuple[str, ...] = ()
    workers: int = 2
    streams: int = 64
    shuffle_shards: int = 4
    fetch: FetchConfig = field(default_factory=FetchConfig)
    max_bad_fraction: float = 0.05

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers} must not be negative")
        if self.streams < 1 or self.shuffle_shards < 1:
            raise ValueError("data.streams and data.shuffle_shards must be at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction={self.max_bad_fraction} must lie in [0, 1]")


@dataclass(frozen=True, slots=True)
class Planned:
    """A sample with its view: what a packer holds. `reference` is (epoch, shard, member)."""

    reference: tuple[int, int, int]
    key: str
    native_size: tuple[int, int]
    view: View


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


class Stream:
    """One stream: an endless sequence of batches with a small, exact state.

    Args:
        index: the stream's number, 0..data.streams-1.
        paths: all shards of the run, in a fixed order.
        seed: of the run.
        num_classes: labels outside 0..num_classes-1 make a sample bad; None accepts any.
    """

    def __init__(
        self,
        index: int,
        paths: Sequence[str],
        data: DataConfig,
        views: ViewsConfig,
        packing: PackingConfig,
        seed: int,
        num_classes: int | None = None,
    ) -> None:
        self.index = index
        self.paths = paths
        self.data = data
        self.views = views
        self.packing = packing
        self.seed = seed
        self.num_classes = num_classes
        self.skipped: list[dict] = []
        self.load_state_dict(
            {"version": STATE_VERSION, "epoch": 0, "group": 0, "offset": 0, "seen": 0, "bad": 0}
            | {"waiting": [], "ready": {"rows": [], "seen": 0, "cost": 0}}
        )

    def next_batch(self) -> PackedBatch:
        """The next `packing.sequences` sequences, decoded. Slots of a sample that fails to decode stay empty.

        Raises:
            ValueError: a view is longer than `packing.seq_len` and `packing.oversize` is `error`; or no
                sample can be used any more.
        """
        seq_len = self.packing.seq_len
        while (rows := self._dealer.deal()) is None:
            planned = next(self._samples)
            tokens = planned.view.num_tokens
            too_long = tokens > seq_len
            self._dealer.add([[(planned, tokens)]] if too_long else self._packer.add(planned, tokens))
        decoded = [[image for item in row if (image := self._decode(*item))] for row in rows]
        return PackedBatch.build(decoded, seq_len, min_rows=self.packing.sequences)

    def state_dict(self) -> dict:
        """The state after the last batch: integers only, some bytes for each waiting sample."""
        ready = self._dealer.state_dict()
        return {
            "version": STATE_VERSION,
            "epoch": self._epoch,
            "group": self._group,
            "offset": self._offset,
            "seen": self.seen,
            "bad": self.bad,
            "waiting": [[list(planned.reference) for planned, _ in row] for row in self._packer.waiting()],
            "ready": ready | {"rows": [[[*p.reference, kept] for p, kept in row] for row in ready["rows"]]},
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue after the batch that `state` followed; views are drawn again from their references."""
        if state["version"] != STATE_VERSION:
            raise ValueError(f"data state has version {state['version']}, this packvit reads {STATE_VERSION}")
        self._epoch, self._group, self._offset = state["epoch"], state["group"], state["offset"]
        self.seen, self.bad = state["seen"], state["bad"]
        waiting = [[self._plan(tuple(reference)) for reference in row] for row in state["waiting"]]
        self._packer = self.packing.new_packer()
        self._packer.restore([[(planned, planned.view.num_tokens) for planned in row] for row in waiting])
        rows = [[(self._plan(tuple(item[:3])), item[3]) for item in row] for row in state["ready"]["rows"]]
        self._dealer = Dealer(self.packing.seq_len, self.packing.sequences, self.packing.balance)
        self._dealer.restore(state["ready"] | {"rows": rows})
        self._samples = self._read()

    def _read(self) -> Iterator[Planned]:
        """Every good sample from the stream's place on, for ever.

        An epoch may hold none: small or broken shards leave units empty; the next epoch has others.
        """
        failed, epochs = 0, 0  # since the last good sample
        while failed < BARREN_SAMPLES and epochs < BARREN_EPOCHS:
            units = epoch_units(len(self.paths), self.data.streams, self.index, self._epoch, self.seed)
            for start in range(self._group * self.data.shuffle_shards, len(units), self.data.shuffle_shards):
                for member in self._shuffled(units[start : start + self.data.shuffle_shards])[self._offset :]:
                    self._offset += 1
                    self.seen += 1
                    try:
                        planned = self._plan((self._epoch, *member))
                    except (BadSample, BadShard) as error:
                        self._skip(error)
                        failed += 1
                        continue
                    failed, epochs = 0, 0
                    yield planned
                self._group += 1
                self._offset = 0
            self._epoch += 1
            self._group = 0
            epochs += 1
        named = f": {self.skipped[-1]['shard']}: {self.skipped[-1]['reason']}" if self.skipped else ""
        raise ValueError(
            f"data stream {self.index} finds no usable sample any more in {self.paths[0]}, ...{named}"
        )

    def _shuffled(self, units: list[Unit]) -> list[tuple[int, int]]:
        """(shard, member) of every sample of these units, in the epoch's order."""
        members = []
        for unit in units:
            try:
                shard = self._open(unit.shard)
            except BadShard as error:
                self._report(describe_skipped(error), self._unit_size)
                continue
            for problem in shard.problems if unit.part == 0 else ():
                self._report({"shard": shard.path, "key": None, "reason": problem}, 1)
            members += [(unit.shard, member) for member in range(unit.part, len(shard), unit.parts)]
        first = units[0]
        Random(derive_seed(self.seed, "members", self._epoch, first.shard, first.part)).shuffle(members)
        return members

    def _report(self, problem: dict, samples: int) -> None:
        """Name a shard's problem and count the samples it may have cost.

        Not again when a resumed stream comes back to the middle of a group.
        """
        if self._offset == 0:
            self.skipped.append(problem)
            self.seen += samples
            self.bad += samples

    @cached_property
    def _unit_size(self) -> int:
        """Samples that a shard which cannot be read counts for: as many as a unit of one that can."""
        for index in range(len(self.paths)):
            with suppress(BadShard):
                return max(1, len(self._open(index)) // parts_of_shard(len(self.paths), self.data.streams))
        return 1

    def _plan(self, reference: tuple[int, int, int]) -> Planned:
        epoch, shard_index, member = reference
        shard = self._open(shard_index)
        key = shard.key(member)
        native_size = shard.native_size(member)
        shrink = self.packing.oversize == "shrink"
        rng = Random(derive_seed(self.seed, "view", epoch, key))
        view = draw_view(rng, native_size, self.views, self.packing.seq_len if shrink else None)
        rows = self.packing.sequences if self.packing.oversize == "own_row" else 1
        if view.num_tokens > rows * self.packing.seq_len:
            times = f" times packing.sequences={rows}" if rows > 1 else ""
            raise ValueError(
                f"packing.seq_len={self.packing.seq_len}{times} is shorter than image {key!r} "
                f"({view.num_tokens} tokens at p={view.patch_size}): raise packing.seq_len or set "
                "packing.oversize=shrink"
            )
        return Planned(reference, key, native_size, view)

    def _decode(self, planned: Planned, kept: int) -> PackedImage | None:
        """The sample with as many tokens as the packer left it."""
        epoch, shard_index, member = planned.reference
        seed = derive_seed(self.seed, "drop", epoch, planned.key)
        try:
            shard = self._open(shard_index)
            if shard.key(member) != planned.key:
                raise BadShard(shard.path, f"it was replaced, so sample {planned.key!r} is lost")
            return load_sample(
                shard,
                member,
                replace(planned.view, num_tokens=kept),
                planned.native_size,
                seed,
                self.num_classes,
            )
        except (BadSample, BadShard) as error:
            self._skip(error)
            return None

    def _open(self, index: int) -> Shard:
        return Shard.open(self.paths[index], self.data.fetch)

    def _skip(self, error: BadSample | BadShard) -> None:
        self.bad += 1
        self.skipped.append(describe_skipped(error))
