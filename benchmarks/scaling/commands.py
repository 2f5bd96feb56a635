"""Commands on many shards, each in processes of their own: seconds, memory, and what is looked at."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOOKS = "stat,lstat,newfstatat,statx,access,faccessat,faccessat2,open,openat,readlink"


def measure(command: list[str], cache: Path) -> dict[str, float]:
    """Seconds and CPU seconds of a command, and MB of its largest process; it must succeed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"PACKVIT_CACHE": str(cache)}, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "mb": used.ru_maxrss / 1000,
    }


def packvit(*words: str) -> list[str]:
    """A command line of packvit."""
    return [sys.executable, "-m", "packvit.cli", *words]


def index(folder: Path, cache: Path) -> dict[str, float]:
    """`packvit shards index` for the first time, in this process and by one worker for each CPU."""
    return measure(packvit("shards", "index", str(folder), "--workers", "0"), cache)


def analyze(folder: Path, cache: Path) -> dict[str, float]:
    """`packvit analyze` with one packer and length, so that reading the sizes is most of it."""
    words = ("--seq-lens", "256", "--algorithms", "oldest_first", "--epochs", "1", "--out")
    return measure(packvit("analyze", "--shards", str(folder), *words, str(cache / "analysis")), cache)


def start(shards: str, ranks: int, streams: int, cache: Path, trace: Path | None = None) -> dict[str, Any]:
    """A run of several ranks to its first batch; see start.py.

    Args:
        trace: where strace writes what is looked at; None runs without it.
    """
    out = cache / "start"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *command, str(HERE / "start.py"), str(out), shards, str(streams)]
    if trace is not None:
        command = ["strace", "-f", "-o", str(trace), "-e", f"trace={LOOKS}", *command]
    measure(command, cache)
    notes = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
    return {
        "seconds": max(note["seconds"] for note in notes),
        "imported_mb": max(note["imported_mb"] for note in notes),
        "mb": max(note["most_mb"] for note in notes),
        "worker_mb": max(mb for note in notes for mb in note["workers_mb"]),
    }


def count_looks(shards: str, folder: Path, ranks: int, streams: int, cache: Path) -> int:
    """The most system calls of one process, a rank or a worker, that look at or open a file of the folder."""
    trace = cache / "trace"
    start(shards, ranks, streams, cache, trace)
    inside = re.compile(rf'^(\d+) .*"{re.escape(str(folder))}[/"]')
    with trace.open(errors="replace") as lines:
        found = Counter(match[1] for line in lines if (match := inside.match(line)))
    trace.unlink()
    return max(found.values())
