"""The engine of one machine: jobs in this process, or in several."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self

from rich.console import Console

from packvit.common.display import Bar
from packvit.common.engine.engine import naming
from packvit.common.ranks import find_ranks

AHEAD = 3  # jobs handed out for each process: enough to keep it busy, few enough to stop early


class LocalEngine:
    """Runs jobs in `workers` processes, or in this one if `workers` is 1; see Engine.

    The processes start with the first job, and are kept for the next run.

    Args:
        workers: 0 takes one for each CPU.
        console: where a bar shows how far it is; None shows none.
    """

    def __init__(self, workers: int = 1, console: Console | None = None) -> None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._workers = workers or cpus
        self.console = Console(quiet=True) if console is None else console
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    @property
    def workers(self) -> int:
        """See Engine."""
        return self._workers

    def device(self, asked: str) -> str:
        """See Engine."""
        return find_ranks(asked).device.type

    def __exit__(self, kind: object, *_: object) -> None:
        if self._pool:
            if kind is not None:
                # Nobody waits for what they still do, which may take minutes.
                for process in list(self._pool._processes.values()):
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self,
        what: str,
        function: Callable[..., Any],
        jobs: Sequence[tuple],
        setup: Callable[[str], Any] | None = None,
        device: str = "cpu",
    ) -> Iterator[Any]:
        """See Engine; at most a few jobs are begun ahead. With a setup, all are done in this process."""
        alone = self.workers == 1 or setup is not None
        results = self._here(function, jobs, setup, device) if alone else self._there(what, function, jobs)
        # The first call of a forked process must come before the bar has started a thread.
        next(results)
        with Bar(self.console, what, len(jobs), transient=True) as bar:
            for done, result in enumerate(results, 1):
                yield result
                bar.update(done)

    def _here(
        self,
        function: Callable[..., Any],
        jobs: Sequence[tuple],
        setup: Callable[[str], Any] | None,
        device: str,
    ) -> Iterator[Any]:
        own = () if setup is None else (setup(device),)
        yield None
        yield from (function(*own, *job) for job in jobs)

    def _there(self, what: str, function: Callable[..., Any], jobs: Sequence[tuple]) -> Iterator[Any]:
        if self._pool is None:
            # A fork starts at once; elsewhere than on Linux it is not safe.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            # An interrupt from the keyboard is for this process, which then ends the others.
            ignore = (signal.SIGINT, signal.SIG_IGN)
            self._pool = ProcessPoolExecutor(self.workers, context, signal.signal, ignore)
        submit, begun = self._pool.submit, min(len(jobs), AHEAD * self.workers)
        waiting = deque(submit(function, *job) for job in jobs[:begun])
        yield None
        try:
            while waiting:
                yield waiting.popleft().result()
                if begun < len(jobs):
                    waiting.append(submit(function, *jobs[begun]))
                    begun += 1
        except BrokenProcessPool as error:
            names = naming(what, jobs, range(begun - 1 - len(waiting), begun))
            raise RuntimeError(f"a process was killed while it worked on one of {names}") from error
