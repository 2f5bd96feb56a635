"""SIGTERM, which clusters send before they take a machine away, asks a run to save and end."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Preemption:
    """Whether this process was asked to end."""

    asked: bool = False


@contextmanager
def catch_sigterm() -> Iterator[Preemption]:
    """Within it SIGTERM only sets `asked`; the loop looks at it after every step."""
    preemption = Preemption()

    def ask(*_: object) -> None:
        preemption.asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield preemption
    finally:
        signal.signal(signal.SIGTERM, before)
