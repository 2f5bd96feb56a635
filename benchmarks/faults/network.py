"""What the web server of the chaos test does wrong, and when."""

import threading
from random import Random

from faults.kinds import NETWORK
from faults.record import Injected
from faults.server import Fault, FaultyServer

CHANCE = 0.5  # that an answer is wrong while there are faults to come
IN_A_ROW = 2  # faults of one file; a run tries four times more after the first


class Network:
    """Chooses faults for a server, from its own threads.

    Args:
        coming: kinds that are still to come; taken from its front.

    Attributes:
        open: whether faults may come now.
        gone: names of files that the server has no more.
    """

    def __init__(self, server: FaultyServer, coming: list[str], rng: Random) -> None:
        self.server, self.coming, self.rng = server, coming, rng
        self.open = False
        self.gone: set[str] = set()
        self._row: dict[str, int] = {}
        self._lock = threading.Lock()
        self._kinds = {fault: kind for kind, fault in NETWORK.items()}
        server.choose = self._choose

    def _choose(self, path: str) -> Fault | None:
        name = path.rpartition("/")[2]
        with self._lock:
            if name in self.gone:
                return 404
            row = self._row.get(name, 0)
            wrong = self.open and self.coming and row < IN_A_ROW and name.endswith(".tar")
            if not wrong or self.rng.random() >= CHANCE:
                self._row[name] = 0
                return None
            self._row[name] = row + 1
            return NETWORK[self.coming.pop(0)]

    def records(self, lives: list[tuple[float, float]]) -> list[Injected]:
        """All faults of single answers.

        Args:
            lives: beginnings and ends; what a fault kept a life from getting, a later one may get much later,
                which says nothing about the fault.
        """
        found = []
        answers = list(self.server.answered)
        for place, answer in enumerate(answers):
            if answer.fault is None or answer.fault == 404:
                continue
            end = next((end for began, end in lives if began <= answer.at <= end), answer.at)
            again = [a.at for a in answers[place + 1 :] if a.path == answer.path and a.fault is None]
            came = bool(again) and again[0] <= end
            outcome = "fetched again" if came else "the life ended before it was fetched again"
            recovered = again[0] - answer.at if came else None
            found.append(Injected(self._kinds[answer.fault], answer.at, outcome, recovered=recovered))
        return found
