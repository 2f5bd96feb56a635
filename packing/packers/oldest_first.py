"""`oldest_first` and `exact_fill`: every sequence starts with the oldest waiting item, so that no item
starves.

Waiting items are kept in a queue for each length, and the lengths in a sorted list, so the longest item that
fits is found by one bisection. At a lookahead of 256 an item costs 1 to 2 µs; the most expensive mix that was
tried, uniform lengths up to 16,384 at a lookahead of 4,096, costs 3 µs.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable

from packvit.packing.packers.packer import Contents, Item, Packer

SMALL_CUT = 0.01  # share of S that `exact_fill` cuts at once instead of looking for a better end


class OldestFirst(Packer[Item]):
    """`oldest_first`: the oldest item, then always the longest that fits, or two that fill the rest exactly.

    A sequence is made when `lookahead` items wait. This costs O(log lookahead) comparisons per item and, when
    a pair is sought, a pass over the waiting lengths. Every sequence takes the oldest item, so an item is
    packed at the latest in the `lookahead`-th sequence after it arrived.
    """

    def add(self, item: Item, length: int) -> list[Contents[Item]]:
        """See `Packer.add`; finishes at most one sequence."""
        self._put(item, length)
        return [self._fill()] if self._ready() else []

    def flush(self) -> list[Contents[Item]]:
        """See `Packer.flush`."""
        sequences = []
        while self._items:
            sequences.append(self._fill())
        return sequences

    def waiting(self) -> list[Contents[Item]]:
        """See `Packer.waiting`; one list, oldest first."""
        return [list(self._items.values())]

    def restore(self, sequences: Iterable[Contents[Item]]) -> None:
        """See `Packer.restore`."""
        self._items: dict[int, tuple[Item, int]] = {}  # by number of arrival, oldest first
        self._queues: dict[int, deque[int]] = {}  # numbers of arrival by length, oldest first
        self._lengths: list[int] = []  # the keys of `_queues`, ascending
        self._tokens = 0
        self._arrived = 0
        for contents in sequences:
            for item, length in contents:
                self._put(item, length)

    def _ready(self) -> bool:
        return len(self._items) >= self.lookahead

    def _put(self, item: Item, length: int) -> None:
        if length not in self._queues:
            self._queues[length] = deque()
            insort(self._lengths, length)
        self._queues[length].append(self._arrived)
        self._items[self._arrived] = (item, length)
        self._tokens += length
        self._arrived += 1

    def _take(self, length: int) -> tuple[Item, int]:
        """Remove the oldest item of this length."""
        queue = self._queues[length]
        number = queue.popleft()
        if not queue:
            del self._queues[length]
            del self._lengths[bisect_left(self._lengths, length)]
        self._tokens -= length
        return self._items.pop(number)

    def _fill(self) -> Contents[Item]:
        _, oldest = next(iter(self._items.values()))
        contents = [self._take(oldest)]
        room = self.seq_len - oldest
        while room > 0 and (lengths := self._choose(room, self.max_images - len(contents))):
            contents += map(self._take, lengths)
            room -= sum(lengths)
        return contents

    def _choose(self, room: int, images: int) -> tuple[int, ...]:
        """Lengths of the next items of a sequence with `room` slots left for at most `images` of them."""
        fitting = bisect_right(self._lengths, room)
        if not fitting or images < 1:
            return ()
        longest = self._lengths[fitting - 1]
        if longest < room <= 2 * longest and images > 1 and not self._short_are_scarce():
            return self._exact_pair(room, fitting) or (longest,)
        return (longest,)

    def _exact_pair(self, room: int, fitting: int) -> tuple[int, int] | None:
        """Two lengths that add up to `room`, the longer one as long as possible; None without such a pair."""
        queues, lengths = self._queues, self._lengths
        half = bisect_left(lengths, room / 2, 0, fitting)  # from here on an item is the longer of its pair
        least = bisect_left(lengths, room - lengths[fitting - 1], 0, half)
        # The pairs come in the same order down the longer items and up the shorter: take the fewer.
        if half - least < fitting - half:
            longest_first = (room - shorter for shorter in lengths[least : half + 1])
        else:
            longest_first = reversed(lengths[half:fitting])
        for longer in longest_first:
            shorter = room - longer
            if longer in queues and shorter in queues and (longer > shorter or len(queues[longer]) > 1):
                return longer, shorter
        return None

    def _short_are_scarce(self) -> bool:
        """Whether what waits is longer than S / 2 on average.

        Pairs would then use up the short items, and leave the long ones with nothing to fill their gaps.
        """
        return 2 * self._tokens > self.seq_len * len(self._items)


class ExactFill(OldestFirst[Item]):
    """`exact_fill`: like `oldest_first`, but items are shortened a little so that every sequence is full.

    A sequence ends with items that fit exactly or, if there are none, with one that is a little too long. The
    excess tokens are then taken from all its items in proportion to their lengths, rounded in favour of the
    shorter, and each keeps at least one. Only the last sequence of `flush`, and sequences that `max_images`
    closes, have padding.

    It waits for more than `lookahead` items if they are too short to fill a sequence: an item is packed at
    the latest in the max(lookahead, seq_len)-th sequence after it arrived.
    """

    def _ready(self) -> bool:
        count = len(self._items)
        return count >= self.lookahead and (self._tokens >= self.seq_len or count >= self.max_images)

    def _fill(self) -> Contents[Item]:
        return shorten(super()._fill(), self.seq_len)

    def _choose(self, room: int, images: int) -> tuple[int, ...]:
        lengths = super()._choose(room, images)
        place = bisect_left(self._lengths, room)
        if place == len(self._lengths) or images < 1 or sum(lengths) == room:
            return lengths
        over = self._lengths[place] - room  # of the shortest item that is too long
        if (
            images == 1
            or not lengths
            or over <= SMALL_CUT * self.seq_len
            or over <= self._lengths[0] - (room - lengths[0])  # what one more item would cut
            or self._short_are_scarce()
        ):
            return (room + over,)
        return lengths


def shorten(contents: Contents[Item], seq_len: int) -> Contents[Item]:
    """The items with lengths cut in proportion if together they are too long for `seq_len` slots."""
    over = sum(length for _, length in contents) - seq_len
    if over <= 0:
        return contents
    slack = seq_len + over - len(contents)  # each item keeps one
    kept = list(contents)
    for place in sorted(range(len(contents)), key=lambda place: -contents[place][1]):
        item, length = contents[place]
        # Rounded up, longest first: one token over comes from the longest, where it is missed least.
        cut = -(-over * (length - 1) // slack) if over else 0
        kept[place] = item, length - cut
        slack -= length - 1
        over -= cut
    return kept
