"""CPU time of this process and of all that it started, whether they still run or not."""

import os
from contextlib import suppress
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    return sum(map(_ticks, ["self", *descendants()])) / TICK


def _ticks(pid: str) -> int:
    with suppress(OSError):  # it ended: its parent has its time once it has asked for it
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15]))  # its own in user and system mode, and that of its dead children
    return 0


def descendants(pid: str = "self") -> list[str]:
    """Numbers of the processes below one."""
    children: list[str] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                children += (task / "children").read_text().split()
    return children + [below for child in children for below in descendants(child)]
