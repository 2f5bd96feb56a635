"""Which views share a sequence, decided by token counts alone.

A packer takes items with a length, one at a time, and gives back full sequences. It never sees pixels
or tensors; its state is the waiting items and their lengths, nothing else, so saving and restoring it
anywhere changes no sequence.

- `oldest_first` keeps `lookahead` items waiting. A sequence starts with the oldest of them and then takes
  the largest that still fits, until none does. Every sequence takes the oldest item, so an item leaves at the
  latest in the `lookahead`-th sequence after it came: nothing starves.
- `next_fit` fills one sequence and opens the next as soon as an item does not fit (NaViT A.3 describes a
  greedy packer of this kind). It holds nothing back and pads most.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

Item = TypeVar("Item")
Algorithm = Literal["oldest_first", "next_fit"]


@dataclass(frozen=True)
class PackingConfig:
    """How views are packed.

    Args:
        seq_len: S, slots in a sequence.
        sequences: B, sequences in a batch of one rank.
        algorithm: see this module's docstring.
        lookahead: views that wait in a packer, for algorithms that choose among them.
        oversize: what happens to a view of more than S tokens: `shrink` shows the image at a lower
            resolution, `error` stops and names the image.
    """

    seq_len: int = 1024
    sequences: int = 8
    algorithm: Algorithm = "oldest_first"
    lookahead: int = 256
    oversize: Literal["shrink", "error"] = "shrink"

    def __post_init__(self) -> None:
        for name in ("seq_len", "sequences", "lookahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"packing.{name}={getattr(self, name)} must be at least 1")
        if self.algorithm not in PACKERS:
            raise ValueError(f"packing.algorithm={self.algorithm!r} is none of {', '.join(PACKERS)}")


class Packer(Protocol[Item]):
    """Puts items into sequences of at most `seq_len`."""

    def add(self, item: Item, length: int) -> list[list[Item]]:
        """Take one item; return the sequences that are finished now, often none.

        Raises:
            ValueError: the length is not in 1..seq_len.
        """
        ...

    def flush(self) -> list[list[Item]]:
        """Finish every item that still waits."""
        ...

    def waiting(self) -> list[tuple[int, Item]]:
        """The whole state: (length, item) of all that wait, in the order that `restore` needs."""
        ...

    def restore(self, waiting: Iterable[tuple[int, Item]]) -> None:
        """Replace the state by one that `waiting` returned."""
        ...


class OldestFirst(Generic[Item]):
    """`oldest_first`; O(log lookahead) comparisons an item, and holds at most `lookahead` items."""

    # A waiting item's key sorts by length, then youngest to oldest: the largest key not above
    # `room` is the oldest of the longest items that fit.
    _ARRIVALS = 1 << 48

    def __init__(self, seq_len: int, lookahead: int = 256) -> None:
        self.seq_len = seq_len
        self.lookahead = lookahead
        self.restore([])

    def add(self, item: Item, length: int) -> list[list[Item]]:
        """See `Packer.add`; gives at most one sequence."""
        check_length(length, self.seq_len)
        self._insert(item, length)
        return [self._take()] if len(self._items) >= self.lookahead else []

    def flush(self) -> list[list[Item]]:
        """See `Packer.flush`."""
        sequences = []
        while self._items:
            sequences.append(self._take())
        return sequences

    def waiting(self) -> list[tuple[int, Item]]:
        """See `Packer.waiting`; oldest first."""
        return [(key // self._ARRIVALS, item) for key, item in self._items.items()]

    def restore(self, waiting: Iterable[tuple[int, Item]]) -> None:
        """See `Packer.restore`."""
        self._items: dict[int, Item] = {}  # by key, oldest first
        self._sorted: list[int] = []
        self._age = self._ARRIVALS - 1
        for length, item in waiting:
            self._insert(item, length)

    def _insert(self, item: Item, length: int) -> None:
        key = length * self._ARRIVALS + self._age
        self._age -= 1
        self._items[key] = item
        insort(self._sorted, key)

    def _take(self) -> list[Item]:
        keys = self._sorted
        key = next(iter(self._items))
        del keys[bisect_left(keys, key)]
        sequence = [self._items.pop(key)]
        room = self.seq_len - key // self._ARRIVALS
        while (place := bisect_left(keys, (room + 1) * self._ARRIVALS)) > 0:
            key = keys.pop(place - 1)
            sequence.append(self._items.pop(key))
            room -= key // self._ARRIVALS
        return sequence


class NextFit(Generic[Item]):
    """`next_fit`; O(1) an item, and holds one open sequence."""

    def __init__(self, seq_len: int, lookahead: int = 1) -> None:
        self.seq_len = seq_len
        self.restore([])

    def add(self, item: Item, length: int) -> list[list[Item]]:
        """See `Packer.add`; gives at most one sequence."""
        check_length(length, self.seq_len)
        finished = self.flush() if length > self._room else []
        self._open.append((length, item))
        self._room -= length
        return finished

    def flush(self) -> list[list[Item]]:
        """See `Packer.flush`."""
        sequence = [item for _, item in self._open]
        self.restore([])
        return [sequence] if sequence else []

    def waiting(self) -> list[tuple[int, Item]]:
        """See `Packer.waiting`."""
        return list(self._open)

    def restore(self, waiting: Iterable[tuple[int, Item]]) -> None:
        """See `Packer.restore`."""
        self._open = list(waiting)
        self._room = self.seq_len - sum(length for length, _ in self._open)


PACKERS: dict[str, type[OldestFirst] | type[NextFit]] = {"oldest_first": OldestFirst, "next_fit": NextFit}


def make_packer(seq_len: int, algorithm: str = "oldest_first", lookahead: int = 256) -> Packer:
    """A fresh packer.

    Raises:
        ValueError: unknown algorithm, or seq_len or lookahead below 1.
    """
    if algorithm not in PACKERS:
        raise ValueError(f"algorithm={algorithm!r} is none of {', '.join(PACKERS)}")
    if seq_len < 1 or lookahead < 1:
        raise ValueError(f"seq_len={seq_len} and lookahead={lookahead} must be at least 1")
    return PACKERS[algorithm](seq_len, lookahead)


def pack_lengths(
    lengths: Iterable[int], seq_len: int, algorithm: str = "oldest_first", lookahead: int = 256
) -> list[list[int]]:
    """Pack items of the given lengths into sequences; returns the items' indices, by sequence.

    Raises:
        ValueError: a length that is not an integer in 1..seq_len, naming its place.
    """
    packer: Packer[int] = make_packer(seq_len, algorithm, lookahead)
    sequences: list[list[int]] = []
    for index, length in enumerate(lengths):
        try:
            sequences += packer.add(index, length)
        except ValueError as error:
            raise ValueError(f"lengths[{index}]: {error}") from None
    return sequences + packer.flush()


def check_length(length: int, seq_len: int) -> None:
    """Refuse what no sequence can hold.

    Raises:
        ValueError: the length is not an integer in 1..seq_len.
    """
    if length != int(length) or not 1 <= length <= seq_len:
        raise ValueError(f"length {length} is not a whole number in 1..{seq_len} (seq_len)")
