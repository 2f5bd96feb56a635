"""One life of a run under torchrun, from its start to the end of its last process; Linux only.

All processes of a life have a mark in their environment, by which they are found in whatever session.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
MARK = "PACKVIT_CHAOS"
LOOK = 0.02  # seconds between two looks
STEP = re.compile(r"^step (\d+)/", re.MULTILINE)
RESUMED = re.compile(r"^Resuming from \S*step-(\d+)", re.MULTILINE)


def _listen() -> None:
    """What is started in the background of a shell would pass its deafness for SIGINT on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Process:
    """A process of a life; `role` is launcher, rank, worker or other."""

    pid: int
    role: str
    command: str


class Life:
    """A run that was started, with its output in a file.

    Args:
        flags: of `packvit.train`.
        ranks: processes that torchrun starts.
        log: where the output goes.
        environment: variables beside this process's own.

    Attributes:
        began: when, of time.monotonic.
    """

    def __init__(self, flags: list[str], ranks: int, log: Path, environment: dict[str, str]) -> None:
        self.ranks, self.log = ranks, log
        self.mark = f"{MARK}={os.getpid()}-{log.name}"
        name, _, value = self.mark.partition("=")
        with log.open("wb") as file:
            self.launcher = subprocess.Popen(
                [*TORCHRUN, "--nproc-per-node", str(ranks), "-m", "packvit.train", *flags],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment | {name: value},
                start_new_session=True,
                cwd=log.parent,
                preexec_fn=_listen,
            )
        self.began = time.monotonic()

    def output(self) -> str:
        """All that was said so far."""
        return self.log.read_text(errors="replace")

    def steps(self) -> list[int]:
        """The steps that were logged so far."""
        return [int(number) for number in STEP.findall(self.output())]

    def resumed(self) -> int:
        """The step after which it went on; 0 if it started anew, or has not come so far."""
        found = RESUMED.findall(self.output())
        return int(found[0]) if found else 0

    def processes(self) -> list[Process]:
        """Those that are alive; the dead ones that nobody has asked for are not."""
        self.launcher.poll()
        found: dict[int, tuple[int, str]] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):
                    if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                        parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                        found[int(folder.name)] = int(parent), command
        return [Process(pid, self._role(pid, found), command) for pid, (_, command) in found.items()]

    def _role(self, pid: int, found: dict[int, tuple[int, str]]) -> str:
        parent, command = found[pid]
        if pid == self.launcher.pid:
            return "launcher"
        if "-m packvit.train" not in command:
            return "other"
        # A worker is a fork of a rank; a rank whose launcher is gone has another parent.
        return "worker" if parent in found and parent != self.launcher.pid else "rank"

    def send(self, number: signal.Signals, *roles: str, only: int | None = None) -> int:
        """Send a signal to all processes of these roles, or to the `only`-th; returns how many got it."""
        pids = sorted(p.pid for p in self.processes() if not roles or p.role in roles)
        chosen = pids if only is None else pids[only % len(pids) :][:1] if pids else []
        sent = 0
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                sent += 1
        return sent

    def wait_for_step(self, count: int, seconds: float) -> bool:
        """Wait for so many new steps; False if it ended before, or nothing came for so many seconds."""
        logged, changed = -1, time.monotonic()
        while (now := len(self.steps())) < count:
            if now != logged:
                logged, changed = now, time.monotonic()
            if self.launcher.poll() is not None or time.monotonic() - changed > seconds:
                return False
            time.sleep(LOOK)
        return True

    def wait_for_end(self, seconds: float) -> float | None:
        """Seconds until no process was left; None if one still is after the given ones."""
        began = time.monotonic()
        while self.processes():
            if time.monotonic() - began > seconds:
                return None
            time.sleep(5 * LOOK)
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill whatever is left."""
        while self.send(signal.SIGKILL):
            time.sleep(LOOK)
        self.launcher.wait()
