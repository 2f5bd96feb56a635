"""Sequences dealt into batches of nearly equal attention cost.

Every batch has the same number of slots, but not the same sum of squared segment lengths, which is the cost
of attention. Ranks wait for the slowest of them, so each stream deals its sequences into batches that all
cost about as much as B average sequences. Streams see the same distribution, so their averages agree, and
ranks are balanced without any communication.
"""

from collections.abc import Iterable
from typing import Any, Generic, NamedTuple

import numpy as np

from packvit.packing.packers.packer import Contents, Item

PULL = 0.02  # share of the waiting sequences' own mean in the target: it keeps them from all growing alike
MOST_ITEMS = 3000  # that wait in a stream, if two batches have fewer: a checkpoint names them all


class Row(NamedTuple, Generic[Item]):
    """A sequence that waits for its batch.

    contents: its items.
    height: sequences whose space it takes.
    cost: of attention; see `attention_cost`.
    """

    contents: Contents[Item]
    height: int
    cost: int


class Dealer(Generic[Item]):
    """Makes batches of B sequences from those that wait; 0.1 ms a batch of 8 at `balance` 16, below 1 ms a
    batch of 92.

    A batch starts with the sequences that have waited longest; all but the first may be swapped for others,
    so that the sum of squared lengths comes close to the average (`swap`). Every batch takes the sequence
    that has waited longest, so none waits forever; with `balance` 1 they leave in order.

    An item longer than S is a sequence of its own, takes the space of as many sequences as it needs (its
    height) and is never swapped. If the rest of a batch has no space for it, later sequences go first.

    Args:
        seq_len: S.
        sequences: B, sequences of a batch.
        balance: batches' worth of sequences that wait before one is dealt.
        most_items: number of waiting items from which on two batches' worth of sequences are enough.

    Raises:
        ValueError: an item that is added or in a state is longer than a batch.
    """

    def __init__(self, seq_len: int, sequences: int, balance: int = 1, most_items: int = MOST_ITEMS) -> None:
        self.seq_len = seq_len
        self.sequences = sequences
        self.balance = balance
        self.most_items = most_items
        self.load_state_dict({"rows": [], "seen": 0, "cost": 0})

    def add(self, sequences: Iterable[Contents[Item]]) -> None:
        """Take finished sequences."""
        for contents in sequences:
            row = self._row(contents)
            self._waiting.append(row)
            self._room_wanted += row.height
            self._items += len(contents)
            if row.height == 1:
                self._seen += 1
                self._cost += row.cost

    def deal(self) -> list[Contents[Item]] | None:
        """A batch, or None while too few sequences wait.

        It has fewer than B sequences only if all that wait are longer than the space that is left.
        """
        enough = self.balance if self._items < self.most_items else min(self.balance, 2)
        if self._room_wanted < self.sequences * enough:
            return None
        taken, left = [], self.sequences
        for place, row in enumerate(self._waiting):
            if row.height <= left:
                taken.append(place)
                left -= row.height
                if not left:
                    break
        # Wait for a sequence that fits beside long items, but not for ever.
        if left and self._room_wanted < 2 * self.sequences * enough:
            return None
        chosen = self._level(taken)
        batch = [row for row, goes in zip(self._waiting, chosen, strict=True) if goes]
        self._waiting = [row for row, goes in zip(self._waiting, chosen, strict=True) if not goes]
        self._room_wanted -= sum(row.height for row in batch)
        self._items -= sum(len(row.contents) for row in batch)
        return [row.contents for row in batch]

    def state_dict(self) -> dict[str, Any]:
        """The waiting sequences, `rows` in checkpoints, and the number and cost of all sequences so far."""
        return {"rows": [row.contents for row in self._waiting], "seen": self._seen, "cost": self._cost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the state by one that `state_dict` returned."""
        self._waiting: list[Row[Item]] = [self._row(contents) for contents in state["rows"]]
        self._room_wanted = sum(row.height for row in self._waiting)
        self._items = sum(len(row.contents) for row in self._waiting)
        self._seen: int = state["seen"]
        self._cost: int = state["cost"]

    def _row(self, contents: Contents[Item]) -> Row[Item]:
        height = -(-contents[0][1] // self.seq_len) if contents else 1
        if height > self.sequences:
            raise ValueError(
                f"an image of {contents[0][1]} tokens is longer than a batch of {self.sequences} sequences "
                f"of {self.seq_len}: raise packing.sequences"
            )
        return Row(contents, height, attention_cost(contents))

    def _level(self, taken: list[int]) -> list[bool]:
        """Which of the waiting sequences make the batch: those taken, with some of height 1, but never the
        oldest, swapped for others."""
        chosen = np.zeros(len(self._waiting), np.bool_)
        chosen[taken] = True
        short = np.flatnonzero([row.height == 1 for row in self._waiting])
        inside = chosen[short]
        if inside.any() and not inside.all():
            costs = np.array([self._waiting[place].cost for place in short], np.float64)
            target = (1 - PULL) * self._cost / self._seen + PULL * costs.mean()
            chosen[short] = swap(costs, inside, short == taken[0], target * inside.sum())
        return chosen.tolist()


def swap(costs: np.ndarray, inside: np.ndarray, fixed: np.ndarray, target: float) -> np.ndarray:
    """Bring the sum of the costs inside close to `target`: swap one item for another, always the two that
    bring it closest, until no swap brings it closer.

    The items are sorted by cost, so that a swap takes one bisection for each item inside.

    Args:
        costs: float64 [n].
        inside: bool [n], where every item is at first.
        fixed: bool [n], items that are not swapped if they are inside.
        target: wanted sum.

    Returns:
        bool [n], with as many items inside as before.
    """
    order = costs.argsort(kind="stable")
    costs, inside, movable = costs[order], inside[order], (inside & ~fixed)[order]
    gap = target - costs[inside].sum()
    while True:
        ours, others = np.flatnonzero(movable), np.flatnonzero(~inside)
        if not (len(ours) and len(others)):
            break
        wanted, offered = costs[ours] + gap, costs[others]
        above = offered.searchsorted(wanted)
        places = np.stack([above - 1, above]).clip(0, len(others) - 1)  # the closest is one of these
        left = wanted - offered[places]  # [2, ours]
        side, best = np.unravel_index(np.abs(left).argmin(), left.shape)
        if abs(left[side, best]) >= abs(gap):
            break
        gap = left[side, best]
        leaves, comes = ours[best], others[places[side, best]]
        inside[leaves] = movable[leaves] = False
        inside[comes] = movable[comes] = True
    swapped = np.empty_like(inside)
    swapped[order] = inside
    return swapped


def attention_cost(contents: Contents) -> int:
    """Sum of squared lengths, proportional to the FLOPs of attention."""
    return sum(length * length for _, length in contents)
