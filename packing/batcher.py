"""From views to batches: packers and dealers, kept apart where patch sizes must not mix."""

from collections.abc import Callable, Sequence
from typing import Any, Generic

from packvit.packing.balance import Dealer
from packvit.packing.packer import Item, Packer, Row
from packvit.packing.policy import PackingConfig


class Batcher(Generic[Item]):
    """Puts items into sequences and those into batches of `packing.sequences`.

    Args:
        packing: which packer, and how batches are dealt.
        groups: of each group's items there are sequences of its own; often there is one.
        apart: whether batches, too, hold the items of one group alone.
    """

    def __init__(self, packing: PackingConfig, groups: Sequence[int] = (0,), apart: bool = False) -> None:
        self.seq_len = packing.seq_len
        self._packers: dict[int, Packer[Item]] = {group: packing.new_packer() for group in groups}
        kinds = len(groups) if apart else 1
        self._each = [Dealer[Item](packing.seq_len, packing.sequences, packing.balance) for _ in range(kinds)]
        self._dealers = dict(zip(groups, self._each * (len(groups) // kinds), strict=True))

    def add(self, item: Item, length: int, group: int = 0) -> None:
        """Take one item; one that is longer than S has sequences of its own."""
        too_long = length > self.seq_len
        rows = [[(item, length)]] if too_long else self._packers[group].add(item, length)
        self._dealers[group].add(rows)

    def deal(self) -> list[Row[Item]] | None:
        """A batch, or None while too few sequences wait."""
        return next((rows for dealer in self._each if (rows := dealer.deal()) is not None), None)

    def state_dict(self, name: Callable[[Item], list]) -> dict[str, Any]:
        """All that waits, each item by the list of integers that `name` gives; JSON-serialisable."""
        packers = self._packers.values()
        ready = [dealer.state_dict() for dealer in self._each]
        return {
            "waiting": [[[name(item) for item, _ in row] for row in packer.waiting()] for packer in packers],
            "ready": [
                state | {"rows": [[[*name(item), kept] for item, kept in row] for row in state["rows"]]}
                for state in ready
            ],
        }

    def load_state_dict(self, state: dict[str, Any], find: Callable[[list], tuple[Item, int]]) -> None:
        """Replace the state by one that `state_dict` returned.

        Args:
            find: an item and its length from its name.
        """
        for packer, rows in zip(self._packers.values(), state["waiting"], strict=True):
            packer.restore([[find(name) for name in row] for row in rows])
        for dealer, ready in zip(self._each, state["ready"], strict=True):
            rows = [[(find(name[:-1])[0], name[-1]) for name in row] for row in ready["rows"]]
            dealer.restore(ready | {"rows": rows})
