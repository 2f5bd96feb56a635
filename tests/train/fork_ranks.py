"""Ranks as forks of one process, so that torch is loaded once for all of them.

A program that uses it has started no thread of torch, so that a fork is safe.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence


def fork_ranks(ranks: Sequence[Callable[[], None]], until: float) -> None:
    """Call each rank's function in a fork of its own, all at once, and wait for their ends.

    What goes wrong in one is printed. The others, which would wait for it, are ended, as are all when the
    time is over.

    Args:
        until: the end of the time, by `time.monotonic`.

    Raises:
        SystemExit: one failed, or the time is over.
    """
    running: dict[int, int] = {}  # by process the rank's number
    try:
        for number, be_rank in enumerate(ranks):
            child = os.fork()
            if child == 0:
                _run(be_rank)
            running[child] = number
        while running:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child:
                number = running.pop(child)
                if status:
                    sys.exit(f"rank {number} of {len(ranks)} failed")
            elif time.monotonic() > until:
                sys.exit(f"{len(running)} of {len(ranks)} ranks took too long")
            else:
                time.sleep(0.01)
    finally:
        for child in running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _run(be_rank: Callable[[], None]) -> None:
    """Call the function and end the process."""
    try:
        be_rank()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
