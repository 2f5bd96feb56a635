"""Batches ahead of whoever takes them: the same ones, in order, and no thread left behind."""

import threading
from collections.abc import Iterator

import pytest
import torch

from packvit.data.streams.feed import feed, read_ahead
from packvit.packing import Flat


def test_what_is_read_ahead_comes_in_order_and_once():
    assert list(read_ahead(iter(range(200)), 3)) == list(range(200))
    assert list(read_ahead(iter(()), 1)) == []


def test_no_more_is_read_than_may_wait():
    taken: list[int] = []

    def values() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    ahead = read_ahead(values(), 2)
    for number in range(20):
        assert next(ahead) == number
        # Two wait, the thread holds one more.
        assert len(taken) <= number + 1 + 3
    ahead.close()
    assert len(taken) < 30


def test_an_error_comes_after_the_values_before_it():
    def values() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    ahead = read_ahead(values(), 1)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(ahead)


def test_the_thread_ends_with_the_iterator():
    before = threading.active_count()
    ahead = read_ahead(iter(int, 1), 2)
    assert next(ahead) == 0
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before


def test_a_wait_can_be_given_up():
    """What never comes is waited for by the thread alone, which is left behind."""
    never = threading.Event()
    waits: list[float] = []

    def values() -> Iterator[int]:
        yield 1
        never.wait()
        yield 2

    def watch(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise TimeoutError("enough")

    ahead = read_ahead(values(), 1, watch)
    assert next(ahead) == 1
    with pytest.raises(TimeoutError, match="enough"):
        next(ahead)
    assert waits == sorted(waits)
    never.set()


def test_on_a_cpu_flat_values_are_unpacked_and_others_pass():
    tensor = torch.arange(5)
    first, second = feed(iter([Flat.pack({"x": tensor}), "plain"]), torch.device("cpu"))
    assert torch.equal(first["x"], tensor)
    assert second == "plain"
