"""Waits for data, which are noticed, explained, and ended after `train.timeout`."""

import shutil
import sys

from packvit.common.ranks import Ranks
from packvit.data import SHARED, DataError, TrainLoader
from packvit.train.watch.preempt import Preemption

SAY_AFTER = 60.0  # seconds


class Interrupted(Exception):
    """The run was asked to end while it waited for a batch."""


class Patience:
    """Watches the wait for a batch; see packvit.data.streams.feed.

    Args:
        timeout: minutes after which a batch is no longer expected.
    """

    def __init__(self, loader: TrainLoader, ranks: Ranks, preemption: Preemption, timeout: float) -> None:
        self.loader, self.ranks, self.preemption = loader, ranks, preemption
        # Other ranks wait for this one as long as the timeout: this one must be the first to speak.
        self.limit = 0.9 * 60 * timeout
        self.said = -1  # number of the batch whose wait was reported

    def __call__(self, waited: float) -> None:
        """Notice a wait of so many seconds.

        Raises:
            Interrupted: the run was asked to end.
            DataError: the wait is longer than the timeout.
        """
        if self.preemption.asked:
            raise Interrupted
        if waited > self.limit:
            raise DataError(f"{self._what(waited)}: train.timeout is over")
        if waited > SAY_AFTER and self.said != self.loader.start:
            self.said = self.loader.start
            print(f"packvit: {self._what(waited)}", file=sys.stderr, flush=True)

    def _what(self, waited: float) -> str:
        """What is waited for, and what is known of the reason."""
        data = self.loader.plan.data
        stream = self.loader.next_stream()
        memory = ""
        if SHARED.exists():
            usage = shutil.disk_usage(SHARED)
            memory = f"; {SHARED} has {usage.free / 1e6:.0f} of {usage.total / 1e6:.0f} MB free"
        return (
            f"rank {self.ranks.rank} has waited {waited:.0f} s for a batch of data stream {stream} from one "
            f"of its {data.workers} workers, which may read from a slow store or have stopped{memory}"
        )
