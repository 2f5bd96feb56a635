"""Which jobs are still to be done, when others finish in any order and some are lost on the way."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any


class JobQueue:
    """Hands out the numbers 0, 1, ... of jobs, and gives their results back in this order.

    Args:
        number: of jobs.
        retries: how often a job that was lost is handed out again.

    Attributes:
        given_up: numbers of the jobs that were lost too often, in the order in which they were given up.
        done: how many are finished.
    """

    def __init__(self, number: int, retries: int) -> None:
        self.retries = retries
        self.given_up: list[int] = []
        self.done = 0
        self._waiting = deque(range(number))
        self._end = number  # results are handed over up to here
        self._error: BaseException | None = None  # of job `_end`, raised in its turn
        self._first = 0  # the first one whose result was not handed over
        self._results: dict[int, Any] = {}
        self._losses: Counter[int] = Counter()

    @property
    def is_over(self) -> bool:
        """Whether every result was handed over."""
        return self._first == self._end and self._error is None

    @property
    def left(self) -> int:
        """Jobs that are neither finished nor given up."""
        return self._end - self._first - len(self._results) - sum(n >= self._first for n in self.given_up)

    def take(self, ahead: int) -> int | None:
        """The next job to do; None where there is none, or only some `ahead` of the oldest that is undone."""
        if not self._waiting or self._waiting[0] >= min(self._end, self._first + ahead):
            return None
        return self._waiting.popleft()

    def finish(self, number: int, result: Any) -> None:
        """A job is done."""
        self._results[number] = result
        self.done += 1

    def fail(self, number: int, error: BaseException) -> None:
        """A job has raised: those before it are still done, those behind it are not begun."""
        if number < self._end:
            self._end, self._error = number, error

    def lose(self, numbers: Sequence[int]) -> int | None:
        """The jobs of a process are lost.

        Args:
            numbers: the one that it was doing first, then those that it had not begun.

        Returns:
            How often the first one was lost so far; None once it is given up.
        """
        if not numbers:
            return 0
        lost, *others = numbers
        self._waiting.extendleft(reversed(others))
        self._losses[lost] += 1
        if self._losses[lost] > self.retries:
            self.given_up.append(lost)
            return None
        self._waiting.appendleft(lost)
        return self._losses[lost]

    def results(self) -> Iterator[Any]:
        """The results whose turn has come; without those of jobs that were given up.

        Raises:
            BaseException: what the next job has raised.
        """
        while self._first < self._end:
            if self._first in self._results:
                yield self._results.pop(self._first)
            elif self._first not in self.given_up:
                return
            self._first += 1
        if self._error is not None:
            error, self._error = self._error, None
            raise error
