"""The processes of a Ray cluster that do the jobs of one run."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from socket import gethostname
from typing import Any, NamedTuple

from packvit import __version__
from packvit.common.engine.jobs import JobQueue

DEPTH = 2  # jobs of an actor: the one that it does, and one to go on with at once


class Job(NamedTuple):
    """A job of a run; that of an earlier one, whose results nobody wants any more, may not have ended yet."""

    queue: JobQueue
    number: int


class Worker:
    """What an actor is: a process that does jobs, in the driver's folder."""

    def begin(self, folder: str, setup: Callable[[str], Any] | None, device: str, version: str) -> None:
        """Do once what all jobs need; may be called again, for other jobs.

        Raises:
            ValueError: this machine has another version of packvit.
        """
        if version != __version__:
            raise ValueError(f"{gethostname()} has packvit {__version__}, and not {version}")
        # Relative paths are the driver's. A machine without its folder can still read URLs.
        if os.path.isdir(folder):
            os.chdir(folder)
        self._own = ()  # what there was before makes room
        self._own = () if setup is None else (setup(device),)

    def do(self, function: Callable[..., Any], job: tuple) -> Any:
        """One job."""
        return function(*self._own, *job)


class Crew:
    """Actors of one kind, and what they do.

    Args:
        ray: the module, connected to a cluster.
        gpus: whether each has a GPU; all have a core.
        retries: how many may die one after the other before they have begun.
    """

    def __init__(self, ray: Any, gpus: bool, retries: int) -> None:
        self.gpus = gpus
        self._ray, self._retries = ray, retries
        self._setup: Callable[[str], Any] | None = None
        self._stored: Any = None  # the setup where all actors find it, as it may hold a model
        # A lost actor is not restarted by Ray: there may be no machine for it any more.
        self._kind = ray.remote(num_cpus=1, num_gpus=int(gpus), max_restarts=0, scheduling_strategy="SPREAD")(
            Worker
        )
        # What Ray's promises are of: an actor, and its job, or None while the actor begins.
        self._calls: dict[Any, tuple[Any, Job | None]] = {}
        self._ready: dict[Any, int] = {}  # actors that have begun: how many jobs each has
        self._stillborn = 0

    def __len__(self) -> int:
        """Actors that can do jobs."""
        return len(self._ready)

    def prepare(self, setup: Callable[[str], Any] | None) -> None:
        """Let all actors make what the next jobs need; see Engine for the setup."""
        if setup is self._setup:
            return
        self._setup = setup
        self._stored = None if setup is None else self._ray.put(setup)
        busy = {actor for actor, _ in self._calls.values()}
        for actor in busy:  # with what nobody wants any more
            self._ray.kill(actor)
        idle = [actor for actor in self._ready if actor not in busy]
        self._calls, self._ready = {}, {}
        for actor in idle:
            self._begin(actor)

    def grow(self, number: int) -> None:
        """Start actors until there are so many, the cluster permitting."""
        beginning = sum(job is None for _, job in self._calls.values())
        for _ in range(number - len(self._ready) - beginning):
            self._begin(self._kind.remote())

    def _begin(self, actor: Any) -> None:
        device = "cuda" if self.gpus else "cpu"
        promise = actor.begin.remote(os.getcwd(), self._stored, device, __version__)
        self._calls[promise] = actor, None

    def hand_out(
        self, function: Callable[..., Any], jobs: Sequence[tuple], queue: JobQueue, ahead: int
    ) -> None:
        """Give jobs to actors that have too few; near the end one each, so that none waits for another."""
        for depth in range(1, DEPTH + 1):
            for actor in [actor for actor, number in self._ready.items() if number < depth]:
                if depth > 1 and queue.left < 2 * DEPTH * len(self._ready):
                    return
                number = queue.take(ahead)
                if number is None:
                    return
                self._calls[actor.do.remote(function, jobs[number])] = actor, Job(queue, number)
                self._ready[actor] += 1

    def wait(self, queue: JobQueue, seconds: float) -> Iterator[list[int]]:
        """Wait for something to happen, tell the queue, and give the jobs of each actor that was lost.

        Raises:
            Exception: an actor cannot begin.
        """
        if not self._calls:
            time.sleep(seconds)
            return
        finished, _ = self._ray.wait(list(self._calls), timeout=seconds)
        for promise in finished:
            actor, job = self._calls[promise]
            try:
                result = self._ray.get(promise)
            except self._ray.exceptions.RayTaskError as error:
                cause = self._explain(error.cause)
                if job is None:
                    raise cause from None
                job.queue.fail(job.number, cause)
            except self._ray.exceptions.RayError as error:
                yield [job.number for job in self._lose(actor, error) if job.queue is queue]
                continue
            else:
                if job is None:
                    self._stillborn = 0
                else:
                    job.queue.finish(job.number, result)
            del self._calls[promise]
            self._ready[actor] = self._ready.get(actor, 1) - 1

    def _lose(self, actor: Any, error: Exception) -> list[Job]:
        """Forget an actor; gives its jobs, the one that it was at first."""
        mine = [promise for promise, (other, _) in self._calls.items() if other == actor]
        jobs = [self._calls.pop(promise)[1] for promise in mine]
        self._ready.pop(actor, None)
        self._ray.kill(actor)  # it may only be out of reach
        if None in jobs:
            self._stillborn += 1
            if self._stillborn > self._retries and not self._ready:
                raise self._explain(error) from None
        return [job for job in jobs if job is not None]

    def _explain(self, error: Exception) -> Exception:
        """What to raise for an error: itself, unless it is one of Ray's, as where a module is missing."""
        if not isinstance(error, self._ray.exceptions.RayError):
            return error
        reason = str(error).strip().splitlines()[-1]
        return RuntimeError(
            f"the cluster's processes cannot work ({reason}): all machines need the same Python and packvit"
        )

    def end(self) -> None:
        """End all actors."""
        for actor in {*self._ready, *(actor for actor, _ in self._calls.values())}:
            self._ray.kill(actor)
