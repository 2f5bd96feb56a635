"""Signals that ask a run to save and end: SIGTERM, which schedulers send before they take a machine away,
SIGUSR1, by which Slurm announces this, and SIGINT, which is Ctrl-C."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Seconds in which signals count as one: a terminal sends Ctrl-C to torchrun and to the ranks, and torchrun
# hands it on.
ECHO = 1.0


@dataclass
class Preemption:
    """Whether this process was asked to end.

    Args:
        by: the first signal that has arrived; None if none has.
        at: when it arrived, by time.monotonic.
    """

    by: signal.Signals | None = None
    at: float = 0.0

    @property
    def asked(self) -> bool:
        """Whether a signal has arrived."""
        return self.by is not None

    def ask(self, number: int, *_: object) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: it is a second Ctrl-C, which does not wait for the run to save.
        """
        now = time.monotonic()
        if self.by is None:
            self.by, self.at = signal.Signals(number), now
        elif number == signal.SIGINT and now - self.at > ECHO:
            raise KeyboardInterrupt


@contextmanager
def catch_signals() -> Iterator[Preemption]:
    """A context in which the signals only set `asked`; the loop checks it after every step."""
    preemption = Preemption()
    before = {number: signal.signal(number, preemption.ask) for number in ASKING}
    try:
        yield preemption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
