"""The engine of a Ray cluster: an actor on each core, or on each GPU, that takes one job after the other.

The driver hands out the jobs, and so knows what each process was doing when it was lost; the job is then
begun again by another one. Actors are added while the cluster grows.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console

from packvit.common.display import Bar
from packvit.common.engine.crew import Crew
from packvit.common.engine.engine import EngineConfig, name_of, naming
from packvit.common.engine.jobs import JobQueue
from packvit.common.optional import need

AHEAD = 16  # jobs for each process that may be done before the oldest one is
COUNT_EVERY = 2.0  # seconds between two looks at the size of the cluster
# Ray reads these when it is imported. It would print on standard output, between a command's results, what it
# thinks of processes that are lost, and warn of what newer releases do about GPUs.
QUIET = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
REACH_WITHIN = 20.0  # seconds to find out whether anything answers at the cluster's address
SAY_EVERY = 30.0  # seconds between two lines about the progress, where there is no terminal


class RayEngine:
    """Runs jobs on a Ray cluster; see Engine.

    Args:
        config: the cluster, and how often a lost job is begun again.
        console: where a bar shows how far it is.

    Raises:
        ImportError: Ray is not installed.
        ValueError: no cluster answers.
    """

    def __init__(self, config: EngineConfig, console: Console) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self.ray: Any = need("ray", "ray", "--engine ray needs Ray")
        self.config = config
        self.console = console
        self._crew: Crew | None = None  # stays for the next run
        self._counted, self._size = float("-inf"), {}
        self._own = not self.ray.is_initialized()
        if self._own:
            self._connect()
        machines = sum(node["Alive"] for node in self.ray.nodes())
        cores, gpus = self._count("CPU"), self._count("GPU")
        _say(f"Ray has {cores} cores and {gpus} GPUs on {machines} machine{'s' * (machines != 1)}")

    def _connect(self) -> None:
        address = self.config.ray_address or os.environ.get("RAY_ADDRESS") or "local"
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address == "local":
            options["include_dashboard"] = False
        try:
            host, _, port = address.rpartition(":")
            if host and "/" not in host:
                # Ray itself would try for a quarter of an hour.
                socket.create_connection((host, int(port)), timeout=REACH_WITHIN).close()
            self.ray.init(address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            if reason.startswith("Failed to connect to Ray") and "RAY_AUTH_MODE" not in os.environ:
                reason += "; set RAY_AUTH_MODE=token if it asks for a token"
            raise ValueError(f"--ray-address {address}: no Ray cluster can be used ({reason})") from error

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._crew:
            self._crew.end()
        if self._own:
            self.ray.shutdown()

    @property
    def workers(self) -> int:
        """See Engine."""
        return max(1, self._count("CPU"))

    def device(self, asked: str) -> str:
        """See Engine."""
        gpus = asked == "cuda" or (asked == "auto" and self._count("GPU") > 0)
        resource = "GPU" if gpus else "CPU"
        if not self._count(resource):
            raise ValueError(f"the Ray cluster has no {resource}")
        return "cuda" if gpus else "cpu"

    def run(
        self,
        what: str,
        function: Callable[..., Any],
        jobs: Sequence[tuple],
        setup: Callable[[str], Any] | None = None,
        device: str = "cpu",
    ) -> Iterator[Any]:
        """See Engine."""
        gpus = self.device(device) == "cuda"
        if self._crew is not None and self._crew.gpus != gpus:
            self._crew.end()
            self._crew = None
        crew = self._crew = self._crew or Crew(self.ray, gpus, self.config.retries)
        crew.prepare(setup)
        yield from self._run(what, function, jobs, crew, "GPU" if gpus else "CPU")

    def _run(
        self, what: str, function: Callable[..., Any], jobs: Sequence[tuple], crew: Crew, resource: str
    ) -> Iterator[Any]:
        queue, said = JobQueue(len(jobs), self.config.retries), time.monotonic()
        with Bar(self.console, what, len(jobs), transient=True) as bar:
            while not queue.is_over:
                crew.grow(min(self._count(resource), queue.left))
                crew.hand_out(function, jobs, queue, AHEAD * len(crew))
                for lost in crew.wait(queue, COUNT_EVERY):
                    times = queue.lose(lost)
                    if lost and times is not None:
                        name = name_of(what, jobs, lost[0])
                        again = f"it is begun again ({times} of {queue.retries})"
                        _say(f"{name}: its process was lost, and {again}")
                state = f"{len(crew)} processes"
                bar.update(queue.done, state=state)
                if not bar.shown and time.monotonic() >= said + SAY_EVERY:
                    said = time.monotonic()
                    _say(f"{what}: {queue.done} of {len(jobs)}, {state}")
                yield from queue.results()
        if queue.given_up:
            names = naming(what, jobs, sorted(queue.given_up))
            times = f"{queue.retries + 1} times" if queue.retries else "once"
            raise RuntimeError(
                f"{len(queue.given_up)} of {len(jobs)} are not done, because their process was lost {times}: "
                f"{names}"
            )

    def _count(self, resource: str) -> int:
        """How many cores or GPUs the cluster has."""
        if time.monotonic() > self._counted + COUNT_EVERY:
            self._size, self._counted = self.ray.cluster_resources(), time.monotonic()
        return int(self._size.get(resource, 0))


def _say(text: str) -> None:
    print(f"packvit: {text}", file=sys.stderr, flush=True)
