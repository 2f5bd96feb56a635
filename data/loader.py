"""Bring the streams' batches to the trainer: processes, order, state.

Rank r of R takes batches start + r, start + r + R, ... of the run. Batch k comes from stream k mod
streams, so with R dividing the number of streams every stream belongs to one rank. Inside a rank each
stream belongs to one worker. Each worker has a DataLoader of its own, which lets any number of workers
serve any number of streams in the one fixed order.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, count, cycle
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from packvit.data.config import DataConfig
from packvit.data.fetch import is_remote
from packvit.data.shards import expand_shards
from packvit.data.streams import STATE_VERSION, Stream
from packvit.data.taught import StoredLogits
from packvit.packing import FlatBatch, PackedBatch, PackingConfig, ViewsConfig, derive_seed

PREFETCH = 3  # batches ready in each worker


class DataError(ValueError):
    """The data cannot go on; `skipped` names the samples that were lost and not reported yet."""

    def __init__(self, message: str, skipped: list[dict]) -> None:
        super().__init__(message)
        self.skipped = skipped


@dataclass
class LoadedBatch:
    """A batch with what the trainer has to keep.

    Args:
        batch: the packed images.
        stream, state: the stream it came from, and that stream's state after it.
        skipped: {"shard", "key", "reason"} of every sample left out since the stream's last batch.
        error: a sentence, instead of a batch, when the stream cannot go on.
        teachers: for each teacher the same images, in the same order, as it sees them.
    """

    batch: PackedBatch | None
    stream: int = 0
    state: dict = field(default_factory=dict)
    skipped: list[dict] = field(default_factory=list)
    error: str | None = None
    teachers: list[PackedBatch] = field(default_factory=list)


@dataclass
class HandedOver:
    """A loaded batch on its way from a worker: see FlatBatch."""

    loaded: LoadedBatch
    flat: list[FlatBatch]

    @staticmethod
    def pack(loaded: Any) -> "HandedOver":
        """For DataLoader.collate_fn, typed for lists of samples; the worker calls it with a LoadedBatch."""
        batches = [] if loaded.batch is None else [loaded.batch, *loaded.teachers]
        return HandedOver(
            replace(loaded, batch=None, teachers=[]), [FlatBatch.pack(batch) for batch in batches]
        )

    def pin_memory(self) -> "HandedOver":
        """Called by the DataLoader, in its pinning thread."""
        return replace(self, flat=[flat.pin_memory() for flat in self.flat])

    def unpack(self) -> LoadedBatch:
        """The loaded batch again."""
        batch, *teachers = [flat.unpack() for flat in self.flat] or [None]
        return replace(self.loaded, batch=batch, teachers=teachers)


class StreamDataset(IterableDataset):
    """The streams of one worker, in turn, for ever."""

    def __init__(
        self, streams: Sequence[int], make_stream: Callable[[int], Stream], states: dict[int, dict]
    ) -> None:
        self.streams = streams
        self.make_stream = make_stream
        self.states = {index: states[index] for index in streams if index in states}

    def __iter__(self) -> Iterator[LoadedBatch]:
        streams: list[Stream] = []
        try:
            streams += [self.make_stream(index) for index in self.streams]
            for stream in streams:
                if stream.index in self.states:
                    stream.load_state_dict(self.states[stream.index])
            for stream in cycle(streams):
                batch, *teachers = stream.next_batches()
                skipped, stream.skipped = stream.skipped, []
                yield LoadedBatch(batch, stream.index, stream.state_dict(), skipped, teachers=teachers)
        except ValueError as error:
            # A DataLoader would wrap the exception in a traceback; the user gets the sentence.
            lost = [line for stream in streams for line in stream.skipped]
            yield LoadedBatch(None, skipped=lost, error=str(error))


class TrainLoader:
    """Endless batches of one rank, in the run's order; its state follows what was taken, not what was read.

    Raises:
        ValueError: no shard matches, streams are not a multiple of the ranks, the state is of other shards.
    """

    def __init__(
        self,
        data: DataConfig,
        views: ViewsConfig,
        packing: PackingConfig,
        seed: int,
        num_classes: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        teachers: Sequence[tuple[int, int]] = (),
        stored: StoredLogits | None = None,
    ) -> None:
        if data.streams % world_size:
            raise ValueError(f"data.streams={data.streams} must be a multiple of the {world_size} ranks")
        paths = tuple(expand_shards(data.shards))
        sources = None
        if data.weights:
            counts = [len(expand_shards(entry)) for entry in data.shards]
            ends = list(accumulate(counts))
            sources = [range(end - n, end) for end, n in zip(ends, counts, strict=True)]
        self.data, self.paths = data, paths
        self.shards = identify_shards(paths)
        self.make_stream = partial(
            Stream,
            paths=paths,
            data=data,
            views=views,
            packing=packing,
            seed=seed,
            num_classes=num_classes,
            sources=sources,
            teachers=teachers,
            stored=stored,
        )
        self.rank, self.world_size, self.pin_memory = rank, world_size, pin_memory
        self.states: dict[int, dict] = {}
        self.start = 0

    def __iter__(self) -> Iterator[LoadedBatch]:
        data = self.data
        order = [
            (self.start + self.rank + i * self.world_size) % data.streams
            for i in range(data.streams // self.world_size)
        ]
        workers = max(1, min(data.workers, len(order)))
        sources = [
            iter(
                DataLoader(
                    StreamDataset(order[worker::workers], self.make_stream, self.states),
                    batch_size=None,
                    num_workers=min(1, data.workers),
                    prefetch_factor=PREFETCH if data.workers else None,
                    pin_memory=self.pin_memory,
                    collate_fn=HandedOver.pack,
                    # Its own generator: the DataLoader would otherwise draw from, and shift, the global one.
                    generator=torch.Generator(),
                )
            )
            for worker in range(workers)
        ]
        for i in count():
            loaded: LoadedBatch = next(sources[i % len(order) % workers]).unpack()
            if loaded.error is not None:
                raise DataError(loaded.error, loaded.skipped)
            self.states[loaded.stream] = loaded.state
            self.start += self.world_size
            yield loaded

    def counts(self) -> tuple[int, int]:
        """(samples read, samples that could not be used) by this rank's streams, resumed runs included."""
        states = self.states.values()
        return sum(state["seen"] for state in states), sum(state["bad"] for state in states)

    def shrunk(self) -> int:
        """Views of this rank's streams that `packing.oversize` shrank, resumed runs included."""
        return sum(state.get("shrunk", 0) for state in self.states.values())

    def state_dict(self) -> dict:
        """The state of this rank's streams after the batches taken so far; JSON-serialisable."""
        return {
            "version": STATE_VERSION,
            "shards": self.shards,
            "num_streams": self.data.streams,
            "start": self.start,
            "streams": {str(index): state for index, state in self.states.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on after `state`, which may be the union of several ranks' (`merge_states`)."""
        mine = self.state_dict()
        if state["shards"] != mine["shards"]:
            old, new = state["shards"], mine["shards"]
            what = (
                "others"
                if (old["number"], old["first"]) != (new["number"], new["first"])
                else "other contents"
            )
            raise ValueError(
                f"the run was started on {old['number']} shards ({old['first']}, ...), but data.shards names "
                f"{what} ({new['number']}: {self.paths[0]}, ...): resume with the same"
            )
        if state["num_streams"] != mine["num_streams"]:
            raise ValueError(
                f"the run was started with data.streams={state['num_streams']}, not {mine['num_streams']}"
            )
        self.start = state["start"]
        # The other ranks' streams stay out: merged again, their old states would hide the new ones.
        own = (self.start + self.rank) % self.world_size
        streams = {int(index): stream for index, stream in state["streams"].items()}
        self.states = {index: s for index, s in streams.items() if index % self.world_size == own}


def identify_shards(paths: Sequence[str]) -> dict:
    """What tells a list of shards from another: names in order and sizes, wherever the files lie."""
    names = [os.path.basename(path) for path in paths]
    sizes = [-1 if is_remote(path) else os.path.getsize(path) for path in paths]
    return {"number": len(paths), "first": names[0], "digest": f"{derive_seed(*names, *sizes):032x}"}


def merge_states(states: Sequence[dict]) -> dict:
    """One state of all ranks' states."""
    streams = {index: stream for state in states for index, stream in state["streams"].items()}
    return states[0] | {"streams": streams}
