"""What the chaos test writes down of every fault."""

from dataclasses import dataclass, field


@dataclass
class Injected:
    """A fault that was done to a run.

    Args:
        kind: see faults.kinds.
        at: when, of time.monotonic.
        outcome: what the run made of it, in a few words; empty while that is open.
        ended: seconds until the last process was gone, for a fault that ends a life.
        recovered: seconds until the run had got over it: the next step logged, the next whole answer to the
            same request, or the sample named.
    """

    kind: str
    at: float
    outcome: str = ""
    ended: float | None = None
    recovered: float | None = None


@dataclass
class Deck:
    """Kinds of faults that are still to come."""

    endings: list[str] = field(default_factory=list)
    resting: list[str] = field(default_factory=list)
    network: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    def left(self) -> int:
        """How many."""
        return len(self.endings) + len(self.resting) + len(self.network) + len(self.losses)
