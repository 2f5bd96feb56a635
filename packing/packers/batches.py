"""From items to batches: packed into sequences, and sequences dealt into batches."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Generic

from packvit.packing.packers.columns import expand, is_squeezed, squeeze
from packvit.packing.packers.config import PackingConfig
from packvit.packing.packers.dealer import MOST_ITEMS, Dealer
from packvit.packing.packers.packer import Contents, Item, Packer


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
            Dealer[Item](packing.seq_len, packing.sequences, packing.balance, MOST_ITEMS // number)
            for _ in range(number)
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
