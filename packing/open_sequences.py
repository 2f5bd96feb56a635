"""Packers that put an item at once into a sequence that is still open.

`next_fit` keeps one sequence open (NaViT A.3 describes a greedy packer of this kind); `first_fit` and
`best_fit` keep several, and close the one that was opened first when they hold `lookahead` items;
`best_fit_decreasing` collects `lookahead` items and packs them longest first.
"""

import sys
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Generic

from packvit.packing.packer import Item, Row, check_length


class NextFit(Generic[Item]):
    """`next_fit`: one open sequence, finished as soon as an item does not fit.

    O(1) an item. An item leaves at the latest in the second sequence from its coming on.

    Args:
        seq_len: S, slots in a sequence.
        lookahead: not used.
        max_images: most items in a sequence; None has no limit.
    """

    def __init__(self, seq_len: int, lookahead: int = 1, max_images: int | None = None) -> None:
        self.seq_len = seq_len
        self.max_images = max_images or sys.maxsize
        self.restore([])

    def add(self, item: Item, length: int) -> list[Row[Item]]:
        """See `Packer.add`; gives at most one sequence."""
        length = check_length(length, self.seq_len)
        full = length > self._room or len(self._row) >= self.max_images
        finished = self.flush() if full else []
        self._row.append((item, length))
        self._room -= length
        return finished

    def flush(self) -> list[Row[Item]]:
        """See `Packer.flush`."""
        rows = self.waiting()
        self.restore([])
        return rows

    def waiting(self) -> list[Row[Item]]:
        """See `Packer.waiting`."""
        return [list(self._row)] if self._row else []

    def restore(self, rows: Iterable[Row[Item]]) -> None:
        """See `Packer.restore`."""
        self._row: Row[Item] = [pair for row in rows for pair in row]
        self._room = self.seq_len - sum(length for _, length in self._row)


class LeastRoom:
    """Finds the open sequence with the least room: a sorted list, O(log n) comparisons.

    Sequences have ascending numbers; a closed one has no room.
    """

    _NUMBERS = 1 << 48  # keys sort by room, then by number

    def __init__(self, _: int = 0) -> None:
        self._keys: list[int] = []

    def find(self, length: int) -> int | None:
        """The number of the chosen sequence with at least `length` empty slots, if there is any."""
        place = bisect_left(self._keys, length * self._NUMBERS)
        return self._keys[place] % self._NUMBERS if place < len(self._keys) else None

    def change(self, number: int, old: int, new: int) -> None:
        """Sequence `number` had `old` empty slots and has `new` now."""
        if old:
            del self._keys[bisect_left(self._keys, old * self._NUMBERS + number)]
        if new:
            insort(self._keys, new * self._NUMBERS + number)


class FirstRoom:
    """Finds the open sequence that was opened first: a tree of maxima, O(log n). Used as `LeastRoom` is.

    Args:
        most: most sequences that are open at once; their numbers follow one another.
    """

    def __init__(self, most: int) -> None:
        self._leaves = 2 << most.bit_length()  # more than twice as many as open sequences
        self._tree = [0] * (2 * self._leaves)  # node n has children 2 n and 2 n + 1; the root is node 1
        self._first = 0  # number of the sequence at the first leaf

    def find(self, length: int) -> int | None:
        """See `LeastRoom.find`."""
        tree, leaves, node = self._tree, self._leaves, 1
        if tree[node] < length:
            return None
        while node < leaves:
            node *= 2
            node += tree[node] < length
        return node - leaves + self._first

    def change(self, number: int, old: int, new: int) -> None:
        """See `LeastRoom.change`."""
        if number - self._first >= self._leaves:
            self._forget_closed()
        tree, node = self._tree, number - self._first + self._leaves
        tree[node] = new
        while node > 1:
            node //= 2
            left, right = tree[2 * node], tree[2 * node + 1]
            largest = left if left > right else right
            if tree[node] == largest:
                break
            tree[node] = largest

    def _forget_closed(self) -> None:
        """Move the second half of the leaves, among which all that are open are, to the front."""
        half = self._leaves // 2
        rooms = self._tree[self._leaves + half :] + [0] * half
        self._first += half
        self._tree[self._leaves :] = rooms
        for node in range(self._leaves - 1, 0, -1):
            self._tree[node] = max(self._tree[2 * node], self._tree[2 * node + 1])


class OpenSequences(Generic[Item]):
    """Several open sequences; an item goes into the one that `_rooms_type` finds, else into a new one.

    O(log lookahead) an item. Holds fewer than `lookahead` items, in as many sequences at most, and closes the
    sequences in the order in which they were opened: an item leaves at the latest in the `lookahead`-th
    sequence after it came.

    Args:
        seq_len: S, slots in a sequence.
        lookahead: items held when a sequence is closed.
        max_images: most items in a sequence; None has no limit.
    """

    _rooms_type: type[LeastRoom] | type[FirstRoom]

    def __init__(self, seq_len: int, lookahead: int = 256, max_images: int | None = None) -> None:
        self.seq_len = seq_len
        self.lookahead = lookahead
        self.max_images = max_images or sys.maxsize
        self.restore([])

    def add(self, item: Item, length: int) -> list[Row[Item]]:
        """See `Packer.add`; gives at most one sequence."""
        length = check_length(length, self.seq_len)
        number = self._rooms.find(length)
        if number is None:
            number = self._open([])
        row = self._rows[number]
        row.append((item, length))
        self._held += 1
        left = self._left[number] - length
        self._set_room(number, left if len(row) < self.max_images else 0)
        return [self._close()] if self._held >= self.lookahead else []

    def flush(self) -> list[Row[Item]]:
        """See `Packer.flush`."""
        rows = self.waiting()
        self.restore([])
        return rows

    def waiting(self) -> list[Row[Item]]:
        """See `Packer.waiting`; the sequence opened first comes first."""
        return [list(row) for row in self._rows.values()]

    def restore(self, rows: Iterable[Row[Item]]) -> None:
        """See `Packer.restore`."""
        self._rows: dict[int, Row[Item]] = {}  # by number, ascending
        self._left: dict[int, int] = {}  # empty slots, by number
        self._rooms = self._rooms_type(self.lookahead)
        self._opened = 0
        self._held = 0
        for row in rows:
            self._held += len(row)
            self._open(row)

    def _open(self, row: Row[Item]) -> int:
        number = self._opened
        self._opened += 1
        self._rows[number] = list(row)
        self._left[number] = 0
        used = sum(length for _, length in row)
        self._set_room(number, self.seq_len - used if len(row) < self.max_images else 0)
        return number

    def _close(self) -> Row[Item]:
        number = next(iter(self._rows))
        self._set_room(number, 0)
        del self._left[number]
        row = self._rows.pop(number)
        self._held -= len(row)
        return row

    def _set_room(self, number: int, room: int) -> None:
        self._rooms.change(number, self._left[number], room)
        self._left[number] = room


class FirstFit(OpenSequences[Item]):
    """`first_fit`: of the open sequences that hold the item, the one opened first."""

    _rooms_type = FirstRoom


class BestFit(OpenSequences[Item]):
    """`best_fit`: of the open sequences that hold the item, the one with the least room."""

    _rooms_type = LeastRoom


class BestFitDecreasing(Generic[Item]):
    """`best_fit_decreasing`: collects items and packs them, longest first, each by best fit.

    O(log lookahead) comparisons an item. Of each window the emptiest sequence stays open for the next, which
    finishes it: an item leaves with its window or the next, at the latest in the 2 * `lookahead`-th sequence.

    Args:
        seq_len: S, slots in a sequence.
        lookahead: items held when they are packed.
        max_images: most items in a sequence; None has no limit.
    """

    def __init__(self, seq_len: int, lookahead: int = 256, max_images: int | None = None) -> None:
        self.seq_len = seq_len
        self.lookahead = lookahead
        self.max_images = max_images
        self.restore([])

    def add(self, item: Item, length: int) -> list[Row[Item]]:
        """See `Packer.add`; gives a whole window's sequences at once."""
        self._window.append((item, check_length(length, self.seq_len)))
        if len(self._open) + len(self._window) < self.lookahead:
            return []
        older = 1 if self._open else 0
        rows = self.flush()
        if newer := rows[older:]:
            self._open = min(newer, key=lambda row: sum(length for _, length in row))
            rows.remove(self._open)
        return rows

    def flush(self) -> list[Row[Item]]:
        """See `Packer.flush`."""
        # Room for one more than there are, so that it closes no sequence by itself.
        packer = BestFit[Item](self.seq_len, len(self._open) + len(self._window) + 1, self.max_images)
        packer.restore([self._open] if self._open else [])
        for item, length in sorted(self._window, key=lambda pair: -pair[1]):
            packer.add(item, length)
        self.restore([])
        return packer.flush()

    def waiting(self) -> list[Row[Item]]:
        """See `Packer.waiting`; the open sequence, then the window, oldest first."""
        return [list(self._open), list(self._window)]

    def restore(self, rows: Iterable[Row[Item]]) -> None:
        """See `Packer.restore`."""
        self._open: Row[Item]
        self._window: Row[Item]
        self._open, self._window = [list(row) for row in rows] or ([], [])
