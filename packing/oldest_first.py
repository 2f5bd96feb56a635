"""`oldest_first` and `exact_fill`: every sequence starts with the oldest waiting item, so nobody starves.

The lengths that wait are one integer: bit L is set where an item of length L waits. The longest item that
fits is the highest bit below a mask, and two items that fill a gap exactly are a common bit of this integer
and its mirror image: a few operations on S / 64 machine words, whatever the number of items that wait.
"""

import sys
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Generic

from packvit.packing.packer import Item, Row, check_length

SMALL_CUT = 0.01  # share of S that `exact_fill` cuts at once instead of looking for a better end


class OldestFirst(Generic[Item]):
    """`oldest_first`: the oldest item, then always the longest that fits, or two that fit exactly.

    O(S / 64) machine words an item, whatever `lookahead` is. Every sequence takes the oldest item, so an item
    leaves at the latest in the `lookahead`-th sequence after it came.

    Args:
        seq_len: S, slots in a sequence.
        lookahead: items that wait before a sequence is made.
        max_images: most items in a sequence; None has no limit.
    """

    def __init__(self, seq_len: int, lookahead: int = 256, max_images: int | None = None) -> None:
        self.seq_len = seq_len
        self.lookahead = lookahead
        self.max_images = max_images or sys.maxsize
        self.restore([])

    def add(self, item: Item, length: int) -> list[Row[Item]]:
        """See `Packer.add`; gives at most one sequence."""
        self._put(item, check_length(length, self.seq_len))
        return [self._fill()] if self._ready() else []

    def flush(self) -> list[Row[Item]]:
        """See `Packer.flush`."""
        rows = []
        while self._items:
            rows.append(self._fill())
        return rows

    def waiting(self) -> list[Row[Item]]:
        """See `Packer.waiting`; one row, oldest first."""
        return [list(self._items.values())]

    def restore(self, rows: Iterable[Row[Item]]) -> None:
        """See `Packer.restore`."""
        self._items: dict[int, tuple[Item, int]] = {}  # by number of arrival, oldest first
        self._numbers: defaultdict[int, deque[int]] = defaultdict(deque)  # by length, oldest first
        self._lengths = 0  # bit L: an item of length L waits
        self._mirror = 0  # bit S - L: the same
        self._tokens = 0
        self._arrived = 0
        for row in rows:
            for item, length in row:
                self._put(item, length)

    def _ready(self) -> bool:
        return len(self._items) >= self.lookahead

    def _put(self, item: Item, length: int) -> None:
        numbers = self._numbers[length]
        if not numbers:
            self._flip(length)
        numbers.append(self._arrived)
        self._items[self._arrived] = (item, length)
        self._tokens += length
        self._arrived += 1

    def _take(self, length: int) -> tuple[Item, int]:
        """Remove the oldest item of this length."""
        numbers = self._numbers[length]
        number = numbers.popleft()
        if not numbers:
            self._flip(length)
        self._tokens -= length
        return self._items.pop(number)

    def _flip(self, length: int) -> None:
        self._lengths ^= 1 << length
        self._mirror ^= 1 << (self.seq_len - length)

    def _fill(self) -> Row[Item]:
        _, oldest = next(iter(self._items.values()))
        row = [self._take(oldest)]
        room = self.seq_len - oldest
        while room > 0 and (lengths := self._choose(room, self.max_images - len(row))):
            row += map(self._take, lengths)
            room -= sum(lengths)
        return row

    def _choose(self, room: int, images: int) -> tuple[int, ...]:
        """Lengths of the next items of a sequence with `room` slots left for at most `images` of them."""
        longest = (self._lengths & ((2 << room) - 1)).bit_length() - 1
        if longest < 1 or images < 1:
            return ()
        if longest < room <= 2 * longest and images > 1 and not self._short_are_scarce():
            # Bit L of the shifted mirror is set where room - L waits.
            pairs = self._lengths & (self._mirror >> (self.seq_len - room))
            if room == 2 * (longer := pairs.bit_length() - 1) and len(self._numbers[longer]) < 2:
                return (longest,)
            if longer > 0:
                return longer, room - longer
        return (longest,)

    def _short_are_scarce(self) -> bool:
        """Whether what waits is longer than S / 2 on average.

        Pairs would then use up the short items, and leave the long ones with nothing to fill their gaps.
        """
        return 2 * self._tokens > self.seq_len * len(self._items)


class ExactFill(OldestFirst[Item]):
    """`exact_fill`: as `oldest_first`, but items are shortened a little so that every sequence is full.

    A sequence ends with items that fit exactly or, where none do, with one that is a little too long. The
    tokens over are then taken from all its items in proportion to their lengths, rounded in favour of the
    shorter, and each keeps at least one. Only the last sequence of `flush` has padding, and one that
    `max_images` closes.

    It waits for more than `lookahead` items if they are too short to fill a sequence: an item leaves at the
    latest in the max(lookahead, seq_len)-th sequence after it came.
    """

    def _ready(self) -> bool:
        count = len(self._items)
        return count >= self.lookahead and (self._tokens >= self.seq_len or count >= self.max_images)

    def _fill(self) -> Row[Item]:
        return shorten(super()._fill(), self.seq_len)

    def _choose(self, room: int, images: int) -> tuple[int, ...]:
        lengths = super()._choose(room, images)
        longer = self._lengths >> room
        over = (
            longer & -longer
        ).bit_length() - 1  # of the shortest item that is at least as long as the room
        if over < 1 or images < 1 or sum(lengths) == room:
            return lengths
        shortest = (self._lengths & -self._lengths).bit_length() - 1
        if (
            images == 1
            or not lengths
            or over <= SMALL_CUT * self.seq_len
            or over <= shortest - (room - lengths[0])  # what going on would cut
            or self._short_are_scarce()
        ):
            return (room + over,)
        return lengths


def shorten(row: Row[Item], seq_len: int) -> Row[Item]:
    """The items with lengths cut in proportion, where they are too long together for `seq_len` slots."""
    over = sum(length for _, length in row) - seq_len
    if over <= 0:
        return row
    slack = seq_len + over - len(row)  # each item keeps one
    kept = list(row)
    for place in sorted(range(len(row)), key=lambda place: -row[place][1]):
        item, length = row[place]
        # Rounded up, longest first: one token over comes from the longest, where it is missed least.
        cut = -(-over * (length - 1) // slack) if over else 0
        kept[place] = item, length - cut
        slack -= length - 1
        over -= cut
    return kept
