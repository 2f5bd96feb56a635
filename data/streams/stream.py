"""A logical data stream: the order of samples, for any number of processes.

The run's data is divided into a fixed number of streams. Batch k of the run comes from stream k mod streams,
so the order of batches depends neither on workers nor on ranks. Each sample gets a view drawn from (seed,
epoch, key), which the stream's packer puts into sequences. Nothing is decoded before its sequence is full, so
the whole state of a stream is its reading place and the samples that wait.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from random import Random
from typing import assert_never

import torch

from packvit.data.samples.augment import augment
from packvit.data.samples.cut import cut_views
from packvit.data.samples.decode import decode_sample
from packvit.data.samples.mix import mix_samples
from packvit.data.samples.sample import Decoded, Header, Planned, Recalled, describe_skipped
from packvit.data.samples.targets import collate_targets
from packvit.data.shards.shard import BadSample, BadShard
from packvit.data.streams.plan import DataPlan
from packvit.data.streams.reader import Lost, SampleReader
from packvit.packing import (
    Batches,
    ImageFacts,
    PackedBatch,
    PackedImage,
    derive_seed,
    draw_again,
    draw_view,
    map_leaves,
    pack_in_order,
    same_crop,
    send,
    views_at,
    waiting_names,
)

STATE_VERSION = 6
READ_VERSIONS = (5, 6)  # 5 never has what waits by columns


class DataError(ValueError):
    """The data cannot continue; `skipped` names lost samples that have not been reported yet."""

    of_this_rank = True  # not of all ranks alike: each says its own, see packvit.cli.commands

    def __init__(self, message: str, skipped: Sequence[dict] = ()) -> None:
        super().__init__(message)
        self.skipped = list(skipped)


@dataclass
class LoadedBatch:
    """A batch with the information that the trainer has to keep.

    Args:
        batch: the packed images.
        facts: facts about its images.
        teachers: for each teacher the same images, in the same order, as it sees them.
        skipped: {"shard", "key", "reason"} of every sample left out since the stream's last batch.
        stream, state: the stream it came from, and that stream's state after it.
    """

    batch: PackedBatch
    facts: ImageFacts
    teachers: tuple[PackedBatch, ...] = ()
    skipped: list[dict] = field(default_factory=list)
    stream: int = 0
    state: dict = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "LoadedBatch":
        """The same with all batches on `device`."""
        return map_leaves(self, torch.Tensor, lambda tensor: send(tensor, device))


class Stream:
    """One stream: an endless sequence of batches with a small, exact state.

    Args:
        plan: what is read and how it is shown; shared by all streams.
        index: the stream's number, 0..data.streams-1.
    """

    def __init__(self, plan: DataPlan, index: int) -> None:
        self.plan = plan
        self.index = index
        self.reader = SampleReader(plan, index)
        self.batches = self._new_batches()
        self.views_move = plan.views.moves
        self.augmented = plan.data.augment.active
        self.mixed = plan.data.mix.active
        self.collate = partial(collate_targets, plan.targets)
        self.seen = self.bad = self.decoded = self.undecodable = self.shrunk = 0
        self._rng = Random()  # seeded for every sample; a new one for each would take longer
        self._lost_before: list[dict] = []  # lines on what was lost since the last batch already

    def next_batch(self) -> LoadedBatch:
        """The next `packing.sequences` sequences, and the same images as each teacher sees them.

        Slots of a sample that fails to decode stay empty. Image i is the same in all batches.

        Raises:
            DataError: a view is longer than `packing.seq_len` and `packing.oversize` is `error`; or no
                sample can be used any more.
        """
        skipped, self._lost_before = self._lost_before, []
        while (sequences := self.batches.next()) is None:
            header = self._read(skipped)
            planned = self._plan(header, skipped)
            self.shrunk += sum(view.shrunk for view in planned.views)
            self._add(planned)
        decoded = [[s for item in some if (s := self._decode(*item, skipped))] for some in sequences]
        samples = list(chain.from_iterable(decoded))
        samples = mix_samples(samples, self.plan.data.mix) if self.mixed else samples
        cut = [cut_views(sample, self.plan.targets, self.plan.views.drop.pattern) for sample in samples]
        batch, teachers = self._collate(cut, [len(some) for some in decoded])
        self.reader.close()  # a shard that was replaced is noticed by the next batch
        return LoadedBatch(batch, batch.facts(), teachers, skipped, self.index, self.state_dict())

    def _read(self, skipped: list[dict]) -> Header:
        """The next good sample; what is lost before it is counted and named."""
        while True:
            found = self.reader.next()
            if found is None:
                last = f": {skipped[-1]['shard']}: {skipped[-1]['reason']}" if skipped else ""
                raise DataError(
                    f"data stream {self.index} finds no usable sample any more in "
                    f"{self.reader.first_path()}, ...{last}",
                    skipped,
                )
            if isinstance(found, Header):
                self.seen += 1
                return found
            self.seen += found.samples
            self._lose(found, skipped)

    def _plan(self, header: Header, skipped: Sequence[dict] = ()) -> Planned:
        """The sample with its views, a function of (seed, epoch, key) and of the images seen so far."""
        plan, packing = self.plan, self.plan.packing
        rng = self._rng
        rng.seed(derive_seed(plan.seed, "view", header.reference.epoch, header.key))
        views = plan.views
        if self.views_move:
            # All streams have drawn about as many samples as this one, whatever the ranks and workers.
            views = views_at(views, header.reference.drawn * plan.data.streams * plan.shown)
        longest, room = None, 1
        match packing.oversize:
            case "shrink":
                longest = packing.seq_len // plan.shown
            case "own_row":
                room = packing.sequences
            case "error":
                pass
            case _ as unknown:
                assert_never(unknown)
        shown = [draw_view(rng, header.native_size, views, longest)]
        if plan.pairs:
            shown.append(draw_again(rng, shown[0], views, longest))
        planned = Planned(header, tuple(shown))
        if planned.num_tokens > room * packing.seq_len:
            times = f" times packing.sequences={room}" if room > 1 else ""
            sizes = " and ".join(f"p={view.patch_size}" for view in shown)
            raise DataError(
                f"packing.seq_len={packing.seq_len}{times} is shorter than image {header.key!r} "
                f"({planned.num_tokens} tokens at {sizes}): raise packing.seq_len or set "
                "packing.oversize=shrink",
                skipped,
            )
        return planned

    def _recall(self, recalled: Recalled) -> Planned:
        """The sample as it was planned before the run was resumed.

        Raises:
            BadSample, BadShard: it cannot be read any more, or is another one now.
        """
        planned = self._plan(self.reader.header(recalled.reference))
        if planned.num_tokens != recalled.num_tokens:
            path = self.plan.shards.paths[recalled.reference.shard]
            raise BadSample(path, planned.header.key, "its size changed since it was packed")
        return planned

    def _add(self, planned: Planned) -> None:
        """Hand the sample to the packer."""
        mixed = self.plan.views.patch_size_per == "image"
        self.batches.add(planned, planned.num_tokens, 0 if mixed else planned.views[0].patch_size)

    def _decode(self, planned: Planned | Recalled, kept: int, skipped: list[dict]) -> Decoded | None:
        """The sample with as many tokens as the packer left it, then as teachers see it; None if bad."""
        self.decoded += 1
        try:
            planned = planned if isinstance(planned, Planned) else self._recall(planned)
        except (BadSample, BadShard) as error:
            self.undecodable += 1
            self._lose(Lost(describe_skipped(error), 1), skipped)
            return None
        header, views = planned.header, list(planned.views)
        if kept < planned.num_tokens:
            views[0] = replace(views[0], num_tokens=kept)
        views += [same_crop(views[0], *teacher) for teacher in self.plan.teachers]
        seed = derive_seed(self.plan.seed, "drop", header.reference.epoch, header.key)
        try:
            shard = self.reader.shard(header.reference.shard)
            sample = decode_sample(shard, header, views, self.plan.targets, seed, self.plan.data.resize)
        except (BadSample, BadShard) as error:
            self.undecodable += 1
            self._lose(Lost(describe_skipped(error), 1), skipped)
            return None
        return augment(sample, self.plan.data.augment) if self.augmented else sample

    def _collate(
        self, cut: list[list[PackedImage]], lengths: list[int]
    ) -> tuple[PackedBatch, tuple[PackedBatch, ...]]:
        """The student's batch, in sequences of so many samples, and each teacher's, packed by itself."""
        packing, shown = self.plan.packing, self.plan.shown
        own = chain.from_iterable(views[:shown] for views in cut)
        sequences = [list(islice(own, shown * length)) for length in lengths]
        batch = PackedBatch.build(
            sequences, packing.seq_len, min_sequences=packing.sequences, collate=self.collate
        )
        teachers = tuple(
            pack_in_order([views[number] for views in cut], packing.seq_len, self.collate)
            for number in range(shown, shown + len(self.plan.teachers))
        )
        return batch, teachers

    def _lose(self, lost: Lost, skipped: list[dict]) -> None:
        self.bad += lost.samples
        skipped.append(lost.line)

    def state_dict(self) -> dict:
        """The state after the last batch: integers only; `squeeze_waiting` makes it small."""
        return {
            "version": STATE_VERSION,
            **self.reader.state_dict(),
            "seen": self.seen,
            "bad": self.bad,
            "decoded": self.decoded,
            "undecodable": self.undecodable,
            "shrunk": self.shrunk,
            "views": self._views_drawn(),
            "algorithm": self.plan.packing.algorithm,
            **self.batches.state_dict(attrgetter("name")),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue after the batch that `state` followed.

        No sample is read: waiting samples are known by reference and length, and one that can no longer be
        read is a bad sample like any other when its turn comes. Only if views or sequences have changed, the
        waiting samples get new views now and are packed again, in their order.

        Raises:
            DataError: a new view is too long, see `next_batch`.
            ValueError: the state has another version.
        """
        if state["version"] not in READ_VERSIONS:
            readable = " and ".join(map(str, READ_VERSIONS))
            raise ValueError(f"data state has version {state['version']}, this packvit reads {readable}")
        self.reader.load_state_dict(state)
        self.seen, self.bad, self.shrunk = state["seen"], state["bad"], state.get("shrunk", 0)
        self.decoded, self.undecodable = state.get("decoded", self.seen), state.get("undecodable", 0)
        self.batches, self._lost_before = self._new_batches(), []
        algorithm = self.plan.packing.algorithm
        if state["views"] != self._views_drawn() or state.get("algorithm", algorithm) != algorithm:
            self._pack_again(waiting_names(state))
            return

        def find(name: list[int]) -> tuple[Recalled, int]:
            recalled = Recalled(*name)
            return recalled, recalled.num_tokens

        self.batches.load_state_dict(state, find)

    def _pack_again(self, names: Iterable[list[int]]) -> None:
        """Draw new views of samples, by their names, and pack them; what cannot be read is lost."""
        for name in names:
            try:
                planned = self._plan(self.reader.header(Recalled(*name).reference))
            except (BadSample, BadShard) as error:
                self._lose(Lost(describe_skipped(error), 1), self._lost_before)
            else:
                self._add(planned)

    def _views_drawn(self) -> str:
        """Tells whether the same samples get the same views."""
        plan = self.plan
        longest = (plan.packing.seq_len, plan.packing.oversize, *(["pairs"] if plan.pairs else []))
        return f"{derive_seed(plan.seed, plan.data.streams, repr(plan.views), *longest):032x}"

    def _new_batches(self) -> Batches[Planned | Recalled]:
        views, packing = self.plan.views, self.plan.packing
        if packing.sequence_images is not None:
            packing = replace(packing, max_images=max(1, packing.sequence_images // self.plan.shown))
        match views.patch_size_per:
            case "image":
                return Batches(packing, (0,))
            case "sequence":
                return Batches(packing, views.patch_sizes)
            case "batch":
                return Batches(packing, views.patch_sizes, apart=True)
        assert_never(views.patch_size_per)
