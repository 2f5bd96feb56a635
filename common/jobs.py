"""Work in processes, with a progress bar in a terminal."""

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any

from rich.console import Console

from packvit.common.display import Bar

AHEAD = 3  # jobs handed out for each process: enough to keep it busy, few enough to stop early


class Jobs:
    """Runs jobs in `workers` processes, or in this one if `workers` is 1; a context manager.

    The processes start with the first job, and are kept for the next run.
    """

    def __init__(self, workers: int, console: Console) -> None:
        self.workers = workers
        self.console = console
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, what: str, function: Callable[..., Any], jobs: Sequence[tuple]) -> Iterator[Any]:
        """`function(*job)` for each of the jobs, in their order; at most a few are begun ahead.

        Args:
            what: description for the bar.
            function: a function at the top level of a module, so that another process finds it.
            jobs: tuples of arguments.
        """
        results = self._here(function, jobs) if self.workers == 1 else self._there(function, jobs)
        # The first call of a forked process must come before the bar has started a thread.
        next(results)
        with Bar(self.console, what, len(jobs), transient=True) as bar:
            for done, result in enumerate(results, 1):
                yield result
                bar.update(done)

    def _here(self, function: Callable[..., Any], jobs: Sequence[tuple]) -> Iterator[Any]:
        yield None
        yield from (function(*job) for job in jobs)

    def _there(self, function: Callable[..., Any], jobs: Sequence[tuple]) -> Iterator[Any]:
        if self._pool is None:
            # A fork starts at once; elsewhere than on Linux it is not safe.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            # An interrupt from the keyboard is for this process, which then ends the others.
            ignore = (signal.SIGINT, signal.SIG_IGN)
            self._pool = ProcessPoolExecutor(self.workers, context, signal.signal, ignore)
        waiting = deque(self._pool.submit(function, *job) for job in jobs[: AHEAD * self.workers])
        yield None
        for job in islice(jobs, len(waiting), None):
            yield waiting.popleft().result()
            waiting.append(self._pool.submit(function, *job))
        while waiting:
            yield waiting.popleft().result()
