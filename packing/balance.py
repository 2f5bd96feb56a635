"""Deal finished sequences into batches of nearly equal attention cost.

Every batch has the same number of slots, but not the same sum of squared segment lengths, which is what
attention costs. Ranks wait for the slowest of them, so each stream deals its sequences into batches that all
cost about as much as B average ones. Streams see the same distribution: their averages agree, and with them
the ranks, without a word between them.
"""

from collections.abc import Iterable
from typing import Any, Generic

import numpy as np

from packvit.packing.packer import Item, Row

SWAPS = 4  # at most, for a batch; more gain nothing
PULL = 0.02  # share of the waiting sequences' own mean in the target: it keeps them from growing all alike


class Dealer(Generic[Item]):
    """Makes batches of `sequences` rows from those that wait; about 0.2 ms a batch of 8 at `balance` 16.

    A batch starts with the sequences that wait longest; all but the first may be swapped for others, so that
    the sum of squared lengths comes near to the average. Every batch takes the sequence that waits longest,
    so none stays for ever; with `balance` 1 they leave in order.

    An item longer than S comes as a sequence of its own, takes as many whole rows as it needs and is never
    swapped. Where the rest of a batch has no room for it, later sequences go first.

    Args:
        seq_len: S.
        sequences: B, rows of a batch.
        balance: batches' worth of rows that wait before one is dealt.
    """

    def __init__(self, seq_len: int, sequences: int, balance: int = 1) -> None:
        self.seq_len = seq_len
        self.sequences = sequences
        self.balance = balance
        self.restore({"rows": [], "seen": 0, "cost": 0})

    def add(self, rows: Iterable[Row[Item]]) -> None:
        """Take finished sequences."""
        for row in rows:
            self._rows.append(row)
            height = self._height(row)
            self._waiting += height
            if height == 1:
                self._seen += 1
                self._cost += cost(row)

    def deal(self) -> list[Row[Item]] | None:
        """A batch, or None while too few sequences wait.

        It has fewer than `sequences` rows only where all that waits is longer than what is left of it.
        """
        if self._waiting < self.sequences * self.balance:
            return None
        heights = [self._height(row) for row in self._rows]
        taken, left = [], self.sequences
        for place, height in enumerate(heights):
            if height <= left:
                taken.append(place)
                left -= height
        # Wait for a sequence that fits beside long items, but not for ever.
        if left and self._waiting < 2 * self.sequences * self.balance:
            return None
        chosen = self._swap(taken, heights)
        batch = [self._rows[place] for place in sorted(chosen)]
        self._rows = [row for place, row in enumerate(self._rows) if place not in chosen]
        self._waiting -= sum(map(self._height, batch))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The sequences that wait, and the number and cost of all that came."""
        return {"rows": list(self._rows), "seen": self._seen, "cost": self._cost}

    def restore(self, state: dict[str, Any]) -> None:
        """Replace the state by one that `state_dict` returned."""
        self._rows: list[Row[Item]] = list(state["rows"])
        self._waiting = sum(map(self._height, self._rows))  # rows of batches
        self._seen: int = state["seen"]
        self._cost: int = state["cost"]

    def _height(self, row: Row[Item]) -> int:
        """Rows that a sequence takes."""
        return -(-row[0][1] // self.seq_len) if row else 1

    def _swap(self, taken: list[int], heights: list[int]) -> set[int]:
        """`taken` with some sequences of one row, never the oldest, swapped for others that wait."""
        short = [place for place, height in enumerate(heights) if height == 1]
        costs = np.array([cost(self._rows[place]) for place in short], np.float64)
        inside = np.isin(short, taken)
        movable = inside & (np.array(short) != taken[0])
        if not movable.any() or inside.all():
            return set(taken)
        target = (1 - PULL) * self._cost / self._seen + PULL * costs.mean()
        gap = target * inside.sum() - costs[inside].sum()
        for _ in range(SWAPS):
            ours, others = np.flatnonzero(movable), np.flatnonzero(~inside)
            change = costs[others] - costs[ours][:, None]  # [ours, others]
            best = np.unravel_index(np.abs(change - gap).argmin(), change.shape)
            if abs(change[best] - gap) >= abs(gap):
                break
            gap -= change[best]
            leaves, comes = ours[best[0]], others[best[1]]
            inside[leaves] = movable[leaves] = False
            inside[comes] = movable[comes] = True
        long = {place for place in taken if heights[place] > 1}
        return long | {place for place, is_inside in zip(short, inside, strict=True) if is_inside}


def cost(row: Row) -> int:
    """Sum of squared lengths, proportional to the FLOPs of attention."""
    return sum(length * length for _, length in row)
