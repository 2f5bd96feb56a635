"""Logical data streams: which sample comes when, whatever the number of processes.

The run's data is cut into a fixed number of streams. Batch k of the run comes from stream k mod
streams, so the order of batches depends neither on workers nor on ranks. A stream reads its share of every
source (see reader), mixed by weight. Each sample gets a view drawn from (seed, epoch, key), which the
stream's packer puts into sequences. Nothing is decoded before its sequence is full, so the whole state of a
stream is where it reads and which samples wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from packvit.data.augment import augment
from packvit.data.config import DataConfig
from packvit.data.images import pack_in_order
from packvit.data.mix import cut_mixed
from packvit.data.reader import Reader
from packvit.data.samples import DecodedSample, decode_sample, describe_skipped
from packvit.data.shards import BadSample, BadShard, Shard
from packvit.data.taught import StoredLogits
from packvit.packing import (
    Batcher,
    PackedBatch,
    PackingConfig,
    View,
    ViewsConfig,
    derive_seed,
    draw_view,
    reshow,
)

STATE_VERSION = 4


@dataclass(frozen=True, slots=True)
class Planned:
    """A sample with its view: what a packer holds.

    `reference` is (epoch, shard, member, number of good samples that the stream had drawn before).
    """

    reference: tuple[int, int, int, int]
    key: str
    native_size: tuple[int, int]
    view: View


class Stream:
    """One stream: an endless sequence of batches with a small, exact state.

    Args:
        index: the stream's number, 0..data.streams-1.
        paths: all shards of the run, in a fixed order.
        seed: of the run.
        num_classes: labels outside 0..num_classes-1 make a sample bad; None accepts any.
        sources: numbers of the shards of each source that `data.weights` mixes; None is one source of all.
        teachers: (patch size, resolution in pixels) of each teacher, which sees every image whole in the
            crop and flip of its view. They change neither the views nor the state.
        stored: logits that every sample must have.
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
        sources: Sequence[Sequence[int]] | None = None,
        teachers: Sequence[tuple[int, int]] = (),
        stored: StoredLogits | None = None,
    ) -> None:
        self.index = index
        self.paths = paths
        self.data = data
        self.views = views
        self.packing = packing
        self.seed = seed
        self.labels = data.labels(num_classes)
        self.teachers = teachers
        self.stored = stored
        self.skipped: list[dict] = []
        self._opened: dict[int, Shard] = {}  # during a batch
        self.sources = [range(len(paths))] if sources is None else sources
        weights = data.weights or (1.0,) * len(self.sources)
        self.weights = [weight / sum(weights) for weight in weights]
        self._readers = [
            Reader(
                shards,
                self._open,
                index,
                data.streams,
                data.shuffle_shards,
                derive_seed(seed, "source", source) if source else seed,
                self._lose,
            )
            for source, shards in enumerate(self.sources)
        ]
        self._batcher = self._new_batcher()
        self._taken = [0] * len(self._readers)
        self.seen = self.bad = self.shrunk = 0

    def next_batch(self) -> PackedBatch:
        """The first of `next_batches`."""
        return self.next_batches()[0]

    def next_batches(self) -> list[PackedBatch]:
        """The next `packing.sequences` sequences, decoded, and the same images as each teacher sees them.

        Slots of a sample that fails to decode stay empty. Image i is the same in all batches.

        Raises:
            ValueError: a view is longer than `packing.seq_len` and `packing.oversize` is `error`; or no
                sample can be used any more.
        """
        self._opened.clear()  # a shard that was replaced is noticed by the next batch
        seq_len = self.packing.seq_len
        mixed = self.views.patch_size_per == "image"
        while (rows := self._batcher.deal()) is None:
            planned = self._next_planned()
            view = planned.view
            self._batcher.add(planned, view.num_tokens, 0 if mixed else view.patch_size)
        decoded = [[shown for item in row if (shown := self._decode(*item))] for row in rows]
        cut = cut_mixed([sample for row in decoded for sample in row], self.data.mix)
        first = iter(cut)
        images = [[next(first)[0] for _ in row] for row in decoded]
        student = PackedBatch.build(images, seq_len, min_rows=self.packing.sequences)
        views = list(zip(*(shown[1:] for shown in cut), strict=True))
        views = views or [()] * len(self.teachers)  # no image was good
        return [student, *(pack_in_order(seen, seq_len) for seen in views)]

    def state_dict(self) -> dict:
        """The state after the last batch: integers only, some bytes for each waiting sample."""
        return {
            "version": STATE_VERSION,
            "readers": [reader.state() for reader in self._readers],
            "taken": list(self._taken),
            "seen": self.seen,
            "bad": self.bad,
            "shrunk": self.shrunk,
            **self._batcher.state_dict(lambda planned: list(planned.reference)),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue after the batch that `state` followed; views are drawn again from their references."""
        if state["version"] != STATE_VERSION:
            raise ValueError(f"data state has version {state['version']}, this packvit reads {STATE_VERSION}")
        for reader, place in zip(self._readers, state["readers"], strict=True):
            reader.restore(place)
        self._taken = list(state["taken"])
        self.seen, self.bad, self.shrunk = state["seen"], state["bad"], state.get("shrunk", 0)

        def find(reference: list[int]) -> tuple[Planned, int]:
            epoch, shard, member, drawn = reference
            planned = self._plan((epoch, shard, member, drawn))
            return planned, planned.view.num_tokens

        self._batcher = self._new_batcher()
        self._batcher.load_state_dict(state, find)

    def _new_batcher(self) -> Batcher[Planned]:
        per = self.views.patch_size_per
        return Batcher(self.packing, (0,) if per == "image" else self.views.patch_sizes, per == "batch")

    def _next_planned(self) -> Planned:
        """The next good sample, from the source that is furthest behind its weight."""
        while True:
            total = sum(self._taken) + 1
            source = max(range(len(self._readers)), key=lambda i: self.weights[i] * total - self._taken[i])
            reference = self._readers[source].next()
            if reference is None:
                first = self.paths[self.sources[source][0]]
                last = f": {self.skipped[-1]['shard']}: {self.skipped[-1]['reason']}" if self.skipped else ""
                raise ValueError(
                    f"data stream {self.index} finds no usable sample any more in {first}, ...{last}"
                )
            self.seen += 1
            try:
                planned = self._plan((*reference, total - 1))
            except (BadSample, BadShard) as error:
                self._skip(error)
                continue
            self.shrunk += planned.view.shrunk
            self._readers[source].good()
            self._taken[source] += 1
            return planned

    def _lose(self, problem: dict, samples: int) -> None:
        self.skipped.append(problem)
        self.seen += samples
        self.bad += samples

    def _plan(self, reference: tuple[int, int, int, int]) -> Planned:
        epoch, shard_index, member, drawn = reference
        shard = self._open(shard_index)
        key = shard.key(member)
        native_size = shard.native_size(member)
        shrink = self.packing.oversize == "shrink"
        rng = Random(derive_seed(self.seed, "view", epoch, key))
        longest = self.packing.seq_len if shrink else None
        # All streams have drawn about as many samples as this one, however many ranks and workers there are.
        view = draw_view(rng, native_size, self.views, longest, drawn * self.data.streams)
        rows = self.packing.sequences if self.packing.oversize == "own_row" else 1
        if view.num_tokens > rows * self.packing.seq_len:
            times = f" times packing.sequences={rows}" if rows > 1 else ""
            raise ValueError(
                f"packing.seq_len={self.packing.seq_len}{times} is shorter than image {key!r} "
                f"({view.num_tokens} tokens at p={view.patch_size}): raise packing.seq_len or set "
                "packing.oversize=shrink"
            )
        return Planned(reference, key, native_size, view)

    def _decode(self, planned: Planned, kept: int) -> DecodedSample | None:
        """The sample with as many tokens as the packer left it, then as teachers see it; None if bad."""
        epoch, shard_index, member, _ = planned.reference
        seed = derive_seed(self.seed, "drop", epoch, planned.key)
        view = planned.view
        views = [view if kept == view.num_tokens else replace(view, num_tokens=kept)]
        views += [reshow(planned.view, *teacher) for teacher in self.teachers]
        try:
            shard = self._open(shard_index)
            if shard.key(member) != planned.key:
                raise BadShard(shard.path, f"it was replaced, so sample {planned.key!r} is lost")
            sample = decode_sample(
                shard,
                member,
                views,
                planned.native_size,
                seed,
                self.labels,
                self.stored,
                self.views.drop.pattern,
                self.data.caption_field,
            )
            return augment(sample, self.data.augment)
        except (BadSample, BadShard) as error:
            self._skip(error)
            return None

    def _open(self, index: int) -> Shard:
        if index not in self._opened:
            self._opened[index] = Shard.open(self.paths[index], self.data.fetch)
        return self._opened[index]

    def _skip(self, error: BadSample | BadShard) -> None:
        self.bad += 1
        self.skipped.append(describe_skipped(error))
