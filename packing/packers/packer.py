"""The interface of packers, which put items into sequences, one item at a time, by their lengths alone.

A packer never sees pixels or tensors. Its state is the waiting items and their lengths, nothing else, so
saving and restoring it at any time changes no sequence.
"""

import sys
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Contents = list[tuple[Item, int]]  # of a sequence: (item, slots that it takes), in their order


class Packer(Generic[Item]):
    """Puts items into sequences of `seq_len` slots; a finished one says how many slots each item takes.

    Args:
        seq_len: S, slots in a sequence.
        lookahead: number of items that a packer holds to choose among; each packer's docstring says how.
        max_images: maximum number of items in a sequence; None: unlimited.
    """

    def __init__(self, seq_len: int, lookahead: int = 256, max_images: int | None = None) -> None:
        self.seq_len = seq_len
        self.lookahead = lookahead
        self.max_images = max_images or sys.maxsize
        self.restore([])

    def add(self, item: Item, length: int) -> list[Contents[Item]]:
        """Take one item of a length in 1..seq_len; return the sequences that are finished now, often none."""
        raise NotImplementedError

    def flush(self) -> list[Contents[Item]]:
        """Finish every item that still waits."""
        raise NotImplementedError

    def waiting(self) -> list[Contents[Item]]:
        """The whole state: all waiting items with their lengths, grouped by the sequence that they are
        already in."""
        raise NotImplementedError

    def restore(self, sequences: Iterable[Contents[Item]]) -> None:
        """Replace the state by one that `waiting` returned; [] leaves nothing waiting."""
        raise NotImplementedError
