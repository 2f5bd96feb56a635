"""Damage to the shards of a run, which loses samples: done, noticed in skipped.jsonl, and mended."""

import os
import shutil
import time
from collections import Counter
from pathlib import Path
from random import Random

from faults.kinds import GONE, LOCAL_LOSSES
from faults.network import Network
from faults.record import Injected
from packvit.common.json_lines import read_json_lines

MOST = 3  # shards that are damaged at a time
CHANCE, MENDED = 0.5, 0.5  # that something is done at an opportunity; that noticed damage is mended


class Damage:
    """What is wrong with the shards of a run.

    Args:
        coming: kinds that are still to come; taken from its front.
        folder: of the local shards.
        whole: of whole copies of all shards; the server of `network` has those that `folder` lacks.
        run_dir: of the run.

    Attributes:
        done: what was noticed.
    """

    def __init__(
        self, coming: list[str], folder: Path, whole: Path, run_dir: Path, network: Network, rng: Random
    ) -> None:
        self.coming, self.folder, self.whole, self.run_dir = coming, folder, whole, run_dir
        self.network, self.rng = network, rng
        self.done: list[Injected] = []
        self._now: dict[str, tuple[Injected, Counter[tuple]]] = {}  # by name; and what was named before

    @property
    def unnoticed(self) -> int:
        """Shards whose damage the run has not named yet."""
        return sum(not injected.outcome for injected, _ in self._now.values())

    def do_some(self) -> None:
        """Damage a shard, sometimes."""
        if not self.coming or len(self._now) >= MOST or self.rng.random() > CHANCE:
            return
        kind = self.coming.pop(0)
        names = sorted(path.name for path in self.whole.glob("*.tar") if path.name not in self._now)
        names = [name for name in names if (self.folder / name).exists() != (kind == GONE)]
        name = self.rng.choice(names)
        injected = Injected(kind, time.monotonic())
        self._now[name] = injected, self._named(name)
        if kind == GONE:
            self.network.gone.add(name)
        else:
            LOCAL_LOSSES[kind](self.folder / name, self.rng)

    def look(self) -> None:
        """Find out what was noticed, and mend some of that; while nothing runs."""
        for name, (injected, before) in list(self._now.items()):
            new = self._named(name) - before
            if new and not injected.outcome:
                injected.outcome = "left out and named"
                self.done.append(injected)
            if injected.outcome and self.rng.random() < MENDED:
                self._mend(name)

    def mend_all(self) -> None:
        """Every shard is whole again."""
        for name in list(self._now):
            self._mend(name)

    def _mend(self, name: str) -> None:
        injected, _ = self._now.pop(name)
        if injected.kind == GONE:
            self.network.gone.discard(name)
            return
        partial = self.folder / f"{name}.new"
        shutil.copyfile(self.whole / name, partial)
        os.replace(partial, self.folder / name)

    def _named(self, name: str) -> Counter[tuple]:
        """Lines of skipped.jsonl about a shard."""
        path = self.run_dir / "skipped.jsonl"
        lines = read_json_lines(path) if path.exists() else []
        return Counter(
            (line["step"], line["key"], line["reason"]) for line in lines if line["shard"].endswith(name)
        )
