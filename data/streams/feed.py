"""Batches to the device, ahead of whoever takes them.

A batch comes from its worker as one buffer. A thread brings it into page-locked memory and from there to the
device in one copy, on a stream of its own, while the device computes on the batch before; its tensors are
views of the copy. So the device waits for a batch only when the workers are late.
"""

from collections.abc import Generator, Iterator
from queue import Queue
from threading import Event, Thread
from typing import Any, TypeVar

import torch

from packvit.packing import Flat

AHEAD = 1  # batches that wait on the device, beside one on its way
PATIENCE = 10.0  # seconds for a thread to end, which may wait for a worker's batch
T = TypeVar("T")


def feed(values: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Values with their tensors on `device`, in their order.

    Args:
        values: `Flat` ones where the device is not the CPU; a plain value passes as it is.
    """
    if device.type == "cpu":
        return (value.unpack() if isinstance(value, Flat) else value for value in values)
    return _receive(read_ahead(_send(values, device), AHEAD))


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


def read_ahead(values: Iterator[T], ahead: int) -> Generator[T, None, None]:
    """The same values, which a thread takes before they are asked for.

    An error of `values` is raised where their next value would have come. The thread ends with this iterator,
    unless `values` keeps it waiting longer than `PATIENCE`.

    Args:
        ahead: values that wait, beside the one that the thread holds.
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
    try:
        while not isinstance(value := ready.get(), _End):
            yield value
        if value.error is not None:
            raise value.error
    finally:
        stop.set()
        for _ in range(round(PATIENCE / 0.01)):
            if not thread.is_alive():
                break
            if not ready.empty():  # it may wait to hand over a value that nobody takes any more
                ready.get()
            thread.join(0.01)
