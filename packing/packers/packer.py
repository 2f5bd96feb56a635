"""What a packer is: it puts items into sequences, one item at a time, by their lengths alone.

It never sees pixels or tensors. Its state is the items that wait and their lengths, nothing else, so saving
and restoring it anywhere changes no sequence.
"""

from collections.abc import Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Contents = list[tuple[Item, int]]  # of a sequence: (item, slots that it takes), in their order


class Packer(Protocol[Item]):
    """Puts items into sequences of `seq_len` slots; a finished one says how many slots each item takes."""

    def add(self, item: Item, length: int) -> list[Contents[Item]]:
        """Take one item of a length in 1..seq_len; return the sequences that are finished now, often none."""
        ...

    def flush(self) -> list[Contents[Item]]:
        """Finish every item that still waits."""
        ...

    def waiting(self) -> list[Contents[Item]]:
        """The whole state: all items that wait, with their lengths, by the sequence they are already in."""
        ...

    def restore(self, sequences: Iterable[Contents[Item]]) -> None:
        """Replace the state by one that `waiting` returned; [] leaves nothing waiting."""
        ...
