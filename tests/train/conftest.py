"""What tests of several ranks share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RunRanks = Callable[..., None]


@pytest.fixture(scope="session")
def run_ranks() -> RunRanks:
    """run_ranks(program, *arguments): run a file of this folder that forks ranks; it must succeed."""

    def run(program: str, *arguments: str) -> None:
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, str(HERE / program), *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run
