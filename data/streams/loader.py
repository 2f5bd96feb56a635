"""Bring the streams' batches to the trainer: processes, order, state.

Rank r of R takes batches start + r, start + r + R, ... of the run. Batch k comes from stream k mod streams; R
divides the number of streams, so every stream belongs to one rank. Within a rank each stream belongs to one
worker. Each worker has a DataLoader of its own, so that any number of workers can serve any number of streams
in one fixed order.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from multiprocessing.util import get_temp_dir
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from packvit.data.shards.fingerprint import changed_tags, same_shards
from packvit.data.shards.losses import remember_manifests
from packvit.data.shards.redact import redact
from packvit.data.streams.counts import SampleCounts
from packvit.data.streams.feed import Watch, feed
from packvit.data.streams.plan import DataPlan
from packvit.data.streams.stream import STATE_VERSION, DataError, LoadedBatch, Stream
from packvit.packing import Flat, squeeze_waiting

PREFETCH = 3  # batches ready in each worker
CPU = torch.device("cpu")


def load_in_order(dataset: Dataset, workers: int, device: torch.device = CPU) -> Iterator[Any]:
    """The items of a dataset, such as LoadedBatches, made by `workers` processes, or here without any.

    Args:
        device: device on which their tensors are wanted.
    """
    return feed(start_workers(dataset, workers, device), device)


def start_workers(dataset: Dataset, workers: int, device: torch.device) -> Iterator[Any]:
    """Start the processes at once; their output is for `feed`."""
    if workers:
        # They hand tensors over through sockets in a temporary folder. Made here, it is one for all, and goes
        # with this process; a worker that is killed would leave its own behind.
        get_temp_dir()
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        # A batch travels between processes, and to the device, in one piece.
        collate_fn=Flat.pack if workers or device.type != "cpu" else _as_it_is,
        # Its own generator: the DataLoader would otherwise draw from, and shift, the global one.
        generator=torch.Generator(),
        worker_init_fn=_outlive_signals,
    )
    return iter(loader)


def _outlive_signals(worker: int) -> None:
    """Let a worker end for the trainer's SIGTERM alone.

    Schedulers and terminals send signals to every process of a run; the trainer needs its workers until it
    has saved.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere a signal does not tell who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads to come inherit it
        Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()


def _end_for(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


def end_workers() -> None:
    """Kill all workers of this process at once, even a stopped one, which would keep the process from
    ending."""
    workers = multiprocessing.active_children()
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the DataLoader's handler takes their end for a fault
    for worker in workers:
        worker.kill()
        worker.join()


def _as_it_is(loaded: Any) -> Any:
    return loaded


@dataclass
class Failure:
    """What a worker gives instead of a batch when a stream cannot go on; see DataError."""

    message: str
    skipped: list[dict]


class StreamDataset(IterableDataset):
    """The streams of one worker, in turn, forever."""

    def __init__(self, plan: DataPlan, streams: Sequence[int], states: dict[int, dict]) -> None:
        self.plan = plan
        self.streams = streams
        self.states = {index: states[index] for index in streams if index in states}

    def __iter__(self) -> Iterator[LoadedBatch | Failure]:
        try:
            streams = [Stream(self.plan, index) for index in self.streams]
            for stream in streams:
                if stream.index in self.states:
                    stream.load_state_dict(self.states[stream.index])
            for stream in cycle(streams):
                yield stream.next_batch()
        except ValueError as error:
            # A DataLoader would wrap the exception in a traceback; the user gets the sentence.
            yield Failure(str(error), error.skipped if isinstance(error, DataError) else [])


class TrainLoader:
    """Endless batches of one rank, in the run's order; its state follows the batches taken, not those read.

    Args:
        plan: what is read and how it is shown.
        rank, world_size: this process among all of the run; world_size divides data.streams.
        device: device on which batches are wanted; not touched before the first one is taken.

    Attributes:
        watch: watches the waits for workers; see `feed`.

    Raises:
        ValueError: streams are not a multiple of the ranks.
    """

    def __init__(
        self, plan: DataPlan, rank: int = 0, world_size: int = 1, device: torch.device = CPU
    ) -> None:
        if plan.data.streams % world_size:
            raise ValueError(f"data.streams={plan.data.streams} must be a multiple of the {world_size} ranks")
        self.plan = plan
        self.rank, self.world_size, self.device = rank, world_size, device
        self.watch: Watch | None = None
        self.started: list[Iterator[Any]] = []
        self.shards = plan.shards.fingerprint()
        self.states: dict[int, dict] = {}
        self.start = 0
        self.marked = (0, self.states)

    def begin(self) -> None:
        """Start the workers now; otherwise they start when the first batch is taken.

        They are forks of this process, and a fork copies neither the threads of CUDA and NCCL nor what these
        hold. With workers, call this method before either has started.
        """
        streams = self.plan.data.streams
        if self.plan.data.workers:
            remember_manifests(self.plan.shards.paths)
        order = [(self.start + rank) % streams for rank in range(self.rank, streams, self.world_size)]
        workers = max(1, min(self.plan.data.workers, len(order)))
        self.started = [
            start_workers(
                StreamDataset(self.plan, order[worker::workers], self.states),
                min(1, self.plan.data.workers),
                self.device,
            )
            for worker in range(workers)
        ]

    def __iter__(self) -> Iterator[LoadedBatch]:
        if not self.started:
            self.begin()
        queues, self.started = self.started, []
        streams = self.plan.data.streams // self.world_size
        # Worker w has this rank's streams w, w + workers, ...: in the order of the streams they take turns.
        read = (next(queues[i % streams % len(queues)]) for i in count())
        for loaded in feed(read, self.device, self.watch if self.plan.data.workers else None):
            if isinstance(loaded, Failure):
                raise DataError(loaded.message, loaded.skipped)
            self.states[loaded.stream] = loaded.state
            self.start += self.world_size
            yield loaded

    def mark(self) -> None:
        """Remember the state for `back`."""
        self.marked = (self.start, dict(self.states))

    def back(self) -> None:
        """Return to the state of the last `mark`; batches taken since count as not taken."""
        self.start, self.states = self.marked

    def next_stream(self) -> int:
        """The stream that the next batch comes from."""
        return (self.start + self.rank) % self.plan.data.streams

    def counts(self) -> SampleCounts:
        """What became of the samples of this rank's streams, including before a resume."""
        return SampleCounts.of_states(self.states.values())

    def shrunk(self) -> int:
        """Views of this rank's streams that `packing.oversize` shrank, including before a resume."""
        return sum(state.get("shrunk", 0) for state in self.states.values())

    def state_dict(self) -> dict:
        """The state of this rank's streams after the batches taken so far; JSON-serialisable."""
        return {
            "version": STATE_VERSION,
            "shards": self.shards,
            "num_streams": self.plan.data.streams,
            "start": self.start,
            # States of an older version that have not gone on yet are written as this version's, too.
            "streams": {
                str(index): squeeze_waiting(state) | {"version": STATE_VERSION}
                for index, state in self.states.items()
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue after `state`, which may be the union of several ranks' states (`merge_states`).

        Raises:
            ValueError: the state is of other shards or another number of streams.
        """
        if not same_shards(state["shards"], self.shards):
            old, new = state["shards"], self.shards
            same_names = (old["number"], old["first"]) == (new["number"], new["first"])
            what = "other contents" if same_names else "others"
            raise ValueError(
                f"the run was started on {old['number']} shards ({old['first']}, ...), but data.shards names "
                f"{what} ({new['number']}: {redact(self.plan.shards.paths[0])}, ...): resume with the same"
            )
        changed = changed_tags(state["shards"], self.shards) if self.rank == 0 else []
        if changed:
            print(
                f"warning: {len(changed)} of {len(self.shards['remote'])} remote shards that were "
                f"checked have another ETag or date than when the run began ({changed[0]}, ...): end the run "
                "if their contents have changed",
                file=sys.stderr,
            )
        if state["num_streams"] != self.plan.data.streams:
            raise ValueError(
                f"the run was started with data.streams={state['num_streams']}, not {self.plan.data.streams}"
            )
        self.start = state["start"]
        # The other ranks' streams stay out: merged again, their old states would hide the new ones.
        own = (self.start + self.rank) % self.world_size
        streams = {int(index): stream for index, stream in state["streams"].items()}
        self.states = {index: s for index, s in streams.items() if index % self.world_size == own}


def merge_states(states: Sequence[dict]) -> dict:
    """Merge all ranks' states into one."""
    streams = {index: stream for state in states for index, stream in state["streams"].items()}
    return states[0] | {"streams": streams}
