"""From items to batches: packed into sequences, and sequences dealt into batches of nearly equal attention
cost.

Every batch has the same number of slots, but not the same sum of squared segment lengths, which is the cost
of attention. Ranks wait for the slowest of them, so each stream deals its sequences into batches that all
cost about as much as B average sequences. Streams see the same distribution, so their averages agree, and
ranks are balanced without any communication.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Generic, NamedTuple

import numpy as np

from packvit.packing.packers.columns import expand, is_squeezed, squeeze
from packvit.packing.packers.config import PackingConfig
from packvit.packing.packers.packer import Contents, Item, Packer

SWAPS = 4  # at most, for a batch; more gain nothing
PULL = 0.02  # share of the waiting sequences' own mean in the target: it keeps them from all growing alike


class Batches(Generic[Item]):
    """Packs items into sequences and those into batches of `packing.sequences`.

    Args:
        packing: the packer, and how batches are dealt.
        groups: items of different groups never share a sequence; usually there is one group.
        apart: whether they never share a batch either.
    """

    def __init__(self, packing: PackingConfig, groups: Sequence[int] = (0,), apart: bool = False) -> None:
        self.seq_len = packing.seq_len
        self._packers: dict[int, Packer[Item]] = {group: packing.new_packer() for group in groups}
        number = len(groups) if apart else 1
        self._dealers = [
            Dealer[Item](packing.seq_len, packing.sequences, packing.balance) for _ in range(number)
        ]
        self._dealer_of = dict(zip(groups, self._dealers * (len(groups) // number), strict=True))

    def add(self, item: Item, length: int, group: int = 0) -> None:
        """Take one item; one that is longer than S gets sequences of its own."""
        too_long = length > self.seq_len
        sequences = [[(item, length)]] if too_long else self._packers[group].add(item, length)
        self._dealer_of[group].add(sequences)

    def next(self) -> list[Contents[Item]] | None:
        """The sequences of a batch, or None while too few wait."""
        for dealer in self._dealers:
            if (dealt := dealer.deal()) is not None:
                return dealt
        return None

    def state_dict(self, name: Callable[[Item], list]) -> dict[str, Any]:
        """Everything that waits, for every batch anew, so it is plain lists; see `squeeze_waiting`.

        Args:
            name: returns the list of integers that tells an item from others; the last one is its length.
        """
        packers = self._packers.values()
        ready = [dealer.state_dict() for dealer in self._dealers]
        return {
            "waiting": [
                [[name(item) for item, _ in some] for some in packer.waiting()] for packer in packers
            ],
            "ready": [
                state | {"rows": [[[*name(item), kept] for item, kept in some] for some in state["rows"]]}
                for state in ready
            ],
        }

    def load_state_dict(self, state: dict[str, Any], find: Callable[[list], tuple[Item, int]]) -> None:
        """Replace the state by one that `state_dict` returned.

        Args:
            find: returns an item and its length for a name.
        """
        for packer, sequences in zip(self._packers.values(), state["waiting"], strict=True):
            packer.restore([[find(name) for name in some] for some in expand(sequences)])
        for dealer, ready in zip(self._dealers, state["ready"], strict=True):
            sequences = [[(find(name)[0], kept) for name, kept in some] for some in _dealt(ready["rows"])]
            dealer.load_state_dict(ready | {"rows": sequences})


def squeeze_waiting(state: dict[str, Any]) -> dict[str, Any]:
    """A `state_dict` of Batches, as part of a larger one, in a few bytes for each item; takes milliseconds.

    It is read as the plain one is, and squeezing it again changes nothing.
    """
    return state | {
        "waiting": [some if is_squeezed(some) else squeeze(some) for some in state["waiting"]],
        "ready": [
            ready if is_squeezed(ready["rows"]) else ready | {"rows": squeeze(_cut(ready["rows"]))}
            for ready in state["ready"]
        ],
    }


def waiting_names(state: dict[str, Any]) -> Iterator[list]:
    """The names of all items that wait in a `state_dict` of Batches, already packed ones first."""
    for ready in state["ready"]:
        for sequence in _dealt(ready["rows"]):
            yield from (name for name, _ in sequence)
    for sequences in state["waiting"]:
        yield from chain.from_iterable(expand(sequences))


def _cut(rows: Sequence) -> list[list[list[int]]]:
    """Names of dealt items with the slots that they have lost, mostly zero, instead of those they kept."""
    return [[[*name, name[-1] - kept] for *name, kept in some] for some in rows]


def _dealt(rows: Sequence) -> list[list[tuple[list[int], int]]]:
    """The sequences that wait in a dealer: the name of each item, and the slots that it has kept."""
    if is_squeezed(rows):
        return [[(name, name[-1] - cut) for *name, cut in some] for some in expand(rows)]
    return [[(name, kept) for *name, kept in some] for some in rows]


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
    """Makes batches of B sequences from those that wait; about 0.2 ms a batch of 8 at `balance` 16.

    A batch starts with the sequences that have waited longest; all but the first may be swapped for others,
    so that the sum of squared lengths comes close to the average. Every batch takes the sequence that has
    waited longest, so none waits forever; with `balance` 1 they leave in order.

    An item longer than S is a sequence of its own, takes the space of as many sequences as it needs (its
    height) and is never swapped. If the rest of a batch has no space for it, later sequences go first.

    Args:
        seq_len: S.
        sequences: B, sequences of a batch.
        balance: batches' worth of sequences that wait before one is dealt.
    """

    def __init__(self, seq_len: int, sequences: int, balance: int = 1) -> None:
        self.seq_len = seq_len
        self.sequences = sequences
        self.balance = balance
        self.load_state_dict({"rows": [], "seen": 0, "cost": 0})

    def add(self, sequences: Iterable[Contents[Item]]) -> None:
        """Take finished sequences."""
        for contents in sequences:
            row = self._row(contents)
            self._waiting.append(row)
            self._room_wanted += row.height
            if row.height == 1:
                self._seen += 1
                self._cost += row.cost

    def deal(self) -> list[Contents[Item]] | None:
        """A batch, or None while too few sequences wait.

        It has fewer than B sequences only if all that wait are longer than the space that is left.
        """
        if self._room_wanted < self.sequences * self.balance:
            return None
        taken, left = [], self.sequences
        for place, row in enumerate(self._waiting):
            if row.height <= left:
                taken.append(place)
                left -= row.height
        # Wait for a sequence that fits beside long items, but not for ever.
        if left and self._room_wanted < 2 * self.sequences * self.balance:
            return None
        chosen = self._swap(taken)
        batch = [self._waiting[place] for place in sorted(chosen)]
        self._waiting = [row for place, row in enumerate(self._waiting) if place not in chosen]
        self._room_wanted -= sum(row.height for row in batch)
        return [row.contents for row in batch]

    def state_dict(self) -> dict[str, Any]:
        """The waiting sequences, `rows` in checkpoints, and the number and cost of all sequences so far."""
        return {"rows": [row.contents for row in self._waiting], "seen": self._seen, "cost": self._cost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the state by one that `state_dict` returned."""
        self._waiting: list[Row[Item]] = [self._row(contents) for contents in state["rows"]]
        self._room_wanted = sum(row.height for row in self._waiting)
        self._seen: int = state["seen"]
        self._cost: int = state["cost"]

    def _row(self, contents: Contents[Item]) -> Row[Item]:
        height = -(-contents[0][1] // self.seq_len) if contents else 1
        return Row(contents, height, attention_cost(contents))

    def _swap(self, taken: list[int]) -> set[int]:
        """`taken` with some sequences of height 1, never the oldest, swapped for others that wait."""
        short = [place for place, row in enumerate(self._waiting) if row.height == 1]
        costs = np.array([self._waiting[place].cost for place in short], np.float64)
        inside = np.array([place in taken for place in short], np.bool_)
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
        long = {place for place in taken if self._waiting[place].height > 1}
        return long | {place for place, is_inside in zip(short, inside, strict=True) if is_inside}


def attention_cost(contents: Contents) -> int:
    """Sum of squared lengths, proportional to the FLOPs of attention."""
    return sum(length * length for _, length in contents)
