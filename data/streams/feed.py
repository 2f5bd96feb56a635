"""Bring batches to the device ahead of their use.

A batch comes from its worker as one buffer. A thread brings it into page-locked memory and from there to the
device in one copy, on a separate stream, while the device computes on the previous batch; its tensors are
views of the copy. So the device waits for a batch only if the workers are late, and a worker that never
answers blocks the thread, not the trainer.
"""

import time
from collections.abc import Callable, Generator, Iterator
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, TypeVar

import torch

from packvit.packing import Flat

AHEAD = 1  # batches that wait on the device, beside one on its way
PATIENCE = 10.0  # seconds for a thread to end, which may wait for a worker's batch
LOOK = 0.5  # seconds between two looks at a wait
T = TypeVar("T")
# Called again and again while a value does not come, with the seconds waited so far; may raise to give up.
Watch = Callable[[float], None]


def feed(values: Iterator[Any], device: torch.device, watch: Watch | None = None) -> Iterator[Any]:
    """Values with their tensors on `device`, in their order.

    Args:
        values: `Flat` values if the device is not the CPU; plain values are passed on unchanged.
        watch: watches the wait for each value; None waits as long as it takes.
    """
    if device.type != "cpu":
        return _receive(read_ahead(_send(values, device), AHEAD, watch))
    values = read_ahead(values, AHEAD, watch) if watch is not None else values
    return (value.unpack() if isinstance(value, Flat) else value for value in values)


def _send(values: Iterator[Flat], device: torch.device) -> Iterator[tuple[Flat, torch.cuda.Event]]:
    """Start each copy, and give with it the event that follows it."""
    torch.cuda.set_device(device)  # of this thread
    stream = torch.cuda.Stream(device)
    for flat in values:
        with torch.cuda.stream(stream):
            # PyTorch keeps page-locked buffers and reuses one when its copy has ended.
            moved = flat.pin_memory().to(device)
            copied = torch.cuda.Event()
            copied.record(stream)
        yield moved, copied


def _receive(sent: Iterator[tuple[Flat, torch.cuda.Event]]) -> Iterator[Any]:
    """The values, once the current stream of this thread waits for their copies."""
    for flat, copied in sent:
        stream = torch.cuda.current_stream(flat.buffer.device)
        stream.wait_event(copied)
        # The memory belongs to the copying stream, which must not reuse it while this one computes.
        flat.buffer.record_stream(stream)
        yield flat.unpack()


class _End:
    """Follows the last value; `error` ended them before their time."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(values: Iterator[T], ahead: int, watch: Watch | None = None) -> Generator[T, None, None]:
    """The same values, which a thread takes before they are requested.

    An error of `values` is raised where their next value would have come. The thread ends with this iterator,
    unless `values` keeps it waiting longer than `PATIENCE`.

    Args:
        ahead: values that wait, beside the one that the thread holds.
        watch: see `feed`.
    """
    ready: Queue[T | _End] = Queue(ahead)
    stop = Event()

    def take() -> None:
        error = None
        try:
            for value in values:
                ready.put(value)
                if stop.is_set():
                    return
        except BaseException as raised:
            error = raised
        ready.put(_End(error))

    thread = Thread(target=take, daemon=True)
    thread.start()
    patience = PATIENCE
    try:
        while not isinstance(value := _await(ready, watch), _End):
            yield value
        if value.error is not None:
            raise value.error
    except _GivenUp as given_up:
        patience = 0.0  # the thread waits for what will not come
        raise given_up.error from None
    finally:
        stop.set()
        deadline = time.monotonic() + patience
        while thread.is_alive() and time.monotonic() < deadline:
            if not ready.empty():  # it may wait to hand over a value that nobody takes any more
                ready.get()
            thread.join(0.01)


class _GivenUp(Exception):
    """The watch has raised `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _await(ready: Queue[T], watch: Watch | None) -> T:
    if watch is None:
        return ready.get()
    began = time.monotonic()
    while True:
        try:
            return ready.get(timeout=LOOK)
        except Empty:
            try:
                watch(time.monotonic() - began)
            except Exception as error:
                raise _GivenUp(error) from error
