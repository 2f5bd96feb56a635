"""What a packer is: it puts items into sequences, one item at a time, by their lengths alone.

It never sees pixels or tensors. Its state is the items that wait and their lengths, nothing else, so saving
and restoring it anywhere changes no sequence.
"""

from collections.abc import Iterable
from contextlib import suppress
from operator import index
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Row = list[tuple[Item, int]]  # (item, slots it takes); a sequence's items in their order


class Packer(Protocol[Item]):
    """Puts items into sequences of `seq_len` slots; a finished one says how many slots each item takes."""

    def add(self, item: Item, length: int) -> list[Row[Item]]:
        """Take one item; return the sequences that are finished now, often none.

        Raises:
            ValueError: the length is not an integer in 1..seq_len.
        """
        ...

    def flush(self) -> list[Row[Item]]:
        """Finish every item that still waits."""
        ...

    def waiting(self) -> list[Row[Item]]:
        """The whole state: all items that wait, with their lengths, by the sequence they are already in."""
        ...

    def restore(self, rows: Iterable[Row[Item]]) -> None:
        """Replace the state by one that `waiting` returned; [] leaves nothing waiting."""
        ...


def check_length(length: Any, seq_len: int) -> int:
    """The length as a plain int, from any integer type.

    Raises:
        ValueError: it is not an integer in 1..seq_len.
    """
    if type(length) is int and 1 <= length <= seq_len:
        return length
    if not isinstance(length, int):  # True is an int
        with suppress(TypeError):
            return check_length(index(length), seq_len)
    raise ValueError(f"length {length!r} is not an integer in 1..{seq_len} (seq_len)")
