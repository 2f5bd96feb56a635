"""Where the work of a command is done: what every engine can do, and the flags that choose one.

Work is a function and many jobs, most often one for each shard. An engine calls the function for every job,
wherever it likes and in any order, and hands the results over in the order of the jobs, so that what a
command makes of them does not depend on the engine.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self


@dataclass(frozen=True)
class EngineConfig:
    """Where a command's work is done.

    Args:
        engine: local, on this machine; or ray, on all machines of a Ray cluster, one task a shard.
        ray_address: HOST:PORT of the cluster, or auto for the one that this machine is in; by default
            $RAY_ADDRESS, and without that a cluster of this machine alone, for as long as the command runs.
        retries: how often ray begins a task again whose process or machine was lost.
    """

    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"--retries {self.retries} must not be negative")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError(f"--ray-address {self.ray_address} is for --engine ray")


class Engine(Protocol):
    """Runs jobs; a context manager, at whose end its processes are gone."""

    @property
    def workers(self) -> int:
        """How many jobs are done at a time."""
        ...

    def device(self, asked: str) -> str:
        """cpu or cuda: what auto, cpu or cuda means where the jobs are done.

        Raises:
            ValueError: there is none.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(
        self,
        what: str,
        function: Callable[..., Any],
        jobs: Sequence[tuple],
        setup: Callable[[str], Any] | None = None,
        device: str = "cpu",
    ) -> Iterator[Any]:
        """`function(*job)` for each of the jobs, in their order.

        A job may be done twice, and by two processes at a time, where one was taken for lost. What it writes
        must appear whole, and be the same both times.

        Args:
            what: description for the bar.
            function: a function at the top level of a module, so that another process finds it.
            jobs: tuples of arguments; where the first one is a text, it names the job.
            setup: makes what a process needs for all its jobs, such as a model, from the device to use; the
                function then gets it before the job's own arguments. Processes of a run before it begin anew.
            device: what setup gets: auto, cpu or cuda. Where several machines work, auto is their GPUs, if
                they have any.

        Raises:
            Exception: that of a job; what was done until then has been handed over.
            RuntimeError: the processes of a job were killed again and again; names the job.
        """
        ...


def name_of(what: str, jobs: Sequence[tuple], number: int) -> str:
    """What a job is called in messages."""
    first = jobs[number][0]
    return first if isinstance(first, str) else f"{what}, part {number + 1}"


def naming(what: str, jobs: Sequence[tuple], numbers: Sequence[int], most: int = 10) -> str:
    """What some jobs are called, in one line."""
    names = ", ".join(name_of(what, jobs, number) for number in numbers[:most])
    return names + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
