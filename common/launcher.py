"""Ranks end with the launcher that started them."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with_launcher() -> None:
    """Have Linux send SIGTERM to this process, if it is a rank, when torchrun is gone, however that ended.

    Otherwise a rank would train on for ever after a SIGKILL of torchrun, with nobody to notice, and keep the
    run's folder from the next one. A launcher that is gone before the call is not noticed.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
