"""The packers for comparison: they immediately put an item into a sequence that is still open.

`next_fit` keeps one sequence open; `first_fit`, the greedy way of NaViT (arXiv 2307.06304, B.3), and
`best_fit` keep several, and close the one that was opened first when they hold `lookahead` items;
`best_fit_decreasing` collects `lookahead` items and packs them longest first.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable

from packvit.packing.packers.packer import Contents, Item, Packer


class NextFit(Packer[Item]):
    """`next_fit`: one open sequence, finished as soon as an item does not fit; `lookahead` has no effect.

    O(1) per item. An item is packed at the latest in the second sequence after it arrived.
    """

    def add(self, item: Item, length: int) -> list[Contents[Item]]:
        """See `Packer.add`; finishes at most one sequence."""
        full = length > self._room or len(self._open) >= self.max_images
        finished = self.flush() if full else []
        self._open.append((item, length))
        self._room -= length
        return finished

    def flush(self) -> list[Contents[Item]]:
        """See `Packer.flush`."""
        sequences = self.waiting()
        self.restore([])
        return sequences

    def waiting(self) -> list[Contents[Item]]:
        """See `Packer.waiting`."""
        return [list(self._open)] if self._open else []

    def restore(self, sequences: Iterable[Contents[Item]]) -> None:
        """See `Packer.restore`."""
        self._open: Contents[Item] = [pair for contents in sequences for pair in contents]
        self._room = self.seq_len - sum(length for _, length in self._open)


class FirstFit(Packer[Item]):
    """`first_fit`: the open sequence with room for the item that was opened first, or a new one.

    O(open sequences) per item. Holds fewer than `lookahead` items, and closes the sequences in the order in
    which they were opened: an item is packed at the latest in the `lookahead`-th sequence after it arrived.
    """

    def add(self, item: Item, length: int) -> list[Contents[Item]]:
        """See `Packer.add`; finishes at most one sequence."""
        number = self._find(length)
        if number is None:
            number = self._open([])
        contents = self._sequences[number]
        contents.append((item, length))
        self._held += 1
        self._set_room(number, self._rooms[number] - length if len(contents) < self.max_images else 0)
        return [self._close()] if self._held >= self.lookahead else []

    def flush(self) -> list[Contents[Item]]:
        """See `Packer.flush`."""
        sequences = self.waiting()
        self.restore([])
        return sequences

    def waiting(self) -> list[Contents[Item]]:
        """See `Packer.waiting`; the sequence opened first comes first."""
        return [list(contents) for contents in self._sequences.values()]

    def restore(self, sequences: Iterable[Contents[Item]]) -> None:
        """See `Packer.restore`."""
        self._sequences: dict[int, Contents[Item]] = {}  # the open ones by number, ascending
        self._rooms: dict[int, int] = {}  # their empty slots; 0 where no more items may come
        self._opened = 0
        self._held = 0
        for contents in sequences:
            self._held += len(contents)
            self._open(contents)

    def _find(self, length: int) -> int | None:
        """The number of the chosen sequence with at least `length` empty slots, if there is any."""
        return next((number for number, room in self._rooms.items() if room >= length), None)

    def _set_room(self, number: int, room: int) -> None:
        self._rooms[number] = room

    def _open(self, contents: Contents[Item]) -> int:
        number = self._opened
        self._opened += 1
        self._sequences[number] = list(contents)
        used = sum(length for _, length in contents)
        self._set_room(number, self.seq_len - used if len(contents) < self.max_images else 0)
        return number

    def _close(self) -> Contents[Item]:
        number = next(iter(self._sequences))
        self._set_room(number, 0)
        del self._rooms[number]
        contents = self._sequences.pop(number)
        self._held -= len(contents)
        return contents


class BestFit(FirstFit[Item]):
    """`best_fit`: the open sequence with the least room that suffices for the item, or a new one.

    O(log lookahead) comparisons per item; otherwise like `first_fit`.
    """

    def restore(self, sequences: Iterable[Contents[Item]]) -> None:
        """See `Packer.restore`."""
        self._by_room: list[tuple[int, int]] = []  # (room, number) of the sequences with room, ascending
        super().restore(sequences)

    def _find(self, length: int) -> int | None:
        place = bisect_left(self._by_room, (length, 0))
        return self._by_room[place][1] if place < len(self._by_room) else None

    def _set_room(self, number: int, room: int) -> None:
        if before := self._rooms.get(number):
            del self._by_room[bisect_left(self._by_room, (before, number))]
        if room:
            insort(self._by_room, (room, number))
        super()._set_room(number, room)


class BestFitDecreasing(Packer[Item]):
    """`best_fit_decreasing`: collects `lookahead` items and packs them, longest first, each by best fit.

    O(log lookahead) comparisons per item. The emptiest sequence of each window stays open for the next
    window, which finishes it: an item is packed with its window or the next, at the latest in the 2 *
    `lookahead`-th sequence.
    """

    def add(self, item: Item, length: int) -> list[Contents[Item]]:
        """See `Packer.add`; finishes a whole window's sequences at once."""
        self._window.append((item, length))
        if len(self._open) + len(self._window) < self.lookahead:
            return []
        older = 1 if self._open else 0
        sequences = self.flush()
        if newer := sequences[older:]:
            self._open = min(newer, key=lambda contents: sum(length for _, length in contents))
            sequences.remove(self._open)
        return sequences

    def flush(self) -> list[Contents[Item]]:
        """See `Packer.flush`."""
        # Room for one more than there are, so that it closes no sequence by itself.
        packer = BestFit[Item](self.seq_len, len(self._open) + len(self._window) + 1, self.max_images)
        packer.restore([self._open] if self._open else [])
        for item, length in sorted(self._window, key=lambda pair: -pair[1]):
            packer.add(item, length)
        self.restore([])
        return packer.flush()

    def waiting(self) -> list[Contents[Item]]:
        """See `Packer.waiting`; the open sequence, then the window, oldest first."""
        return [list(self._open), list(self._window)]

    def restore(self, sequences: Iterable[Contents[Item]]) -> None:
        """See `Packer.restore`."""
        self._open: Contents[Item]
        self._window: Contents[Item]
        self._open, self._window = [list(contents) for contents in sequences] or ([], [])
