"""Ranks end when the launcher that started them ends."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with_launcher() -> None:
    """Let Linux send SIGTERM to this process, if it is a rank, when torchrun ends for whatever reason.

    Otherwise a rank would train forever after a SIGKILL of torchrun, unnoticed, and block the run's folder
    for the next run. A launcher that ended before the call is not noticed.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
