"""Forked ranks that others wait for are ended with the one that fails, or when their time is over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
from pathlib import Path
from fork_ranks import fork_ranks

def wait():
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)

def fail():
    while len(os.listdir(sys.argv[1])) < 2:
        time.sleep(0.01)
    raise ValueError("no more")

ranks = [wait, wait, fail] if sys.argv[2] == "fail" else [wait, wait]
fork_ranks(ranks, time.monotonic() + float(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("what", "seconds", "message"),
    [("fail", "20", "no more\nrank 2 of 3 failed"), ("wait", "1", "2 of 2 ranks took too long")],
)
def test_ranks_are_ended_with_the_one_that_fails_and_in_time(what, seconds, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), what, seconds],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert message in done.stderr
    processes = [int(file.name) for file in tmp_path.iterdir()]
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
