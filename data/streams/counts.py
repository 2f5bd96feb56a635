"""What became of the samples that a run has read."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class SampleCounts(NamedTuple):
    """Samples by what became of them; the numbers of several ranks are added field by field.

    A sample is read long before its sequence is full and it is decoded, so that in a short run most of those
    read still wait. Samples that are lost in reading and in decoding are therefore shares of different sums.

    read: headers read, the lost ones included.
    unreadable: lost then, such as those of a broken shard or without a label.
    decoded: samples whose turn to be decoded has come, the lost ones included.
    undecodable: lost then, such as broken images.
    """

    read: float = 0
    unreadable: float = 0
    decoded: float = 0
    undecodable: float = 0

    @classmethod
    def of_states(cls, states: Iterable[Mapping[str, Any]]) -> "SampleCounts":
        """The sums over streams' states; older states do not tell decoded samples from waiting ones."""
        each = [
            (
                state["seen"],
                state["bad"] - state.get("undecodable", 0),
                state.get("decoded", state["seen"]),
                state.get("undecodable", 0),
            )
            for state in states
        ]
        return cls(*map(sum, zip(*each, strict=True)))

    @property
    def bad(self) -> float:
        """Samples that could not be used."""
        return self.unreadable + self.undecodable

    def since(self, before: "SampleCounts") -> "SampleCounts":
        """The counts between an earlier moment and this one."""
        return SampleCounts(*(now - then for now, then in zip(self, before, strict=True)))
