"""A run that is hit, started again and hit again until all faults have come, and then ends in peace."""

import re
import time
from pathlib import Path
from random import Random

from faults.damage import Damage
from faults.kinds import BALLAST, ENDINGS, RESTING
from faults.life import Life
from faults.network import Network
from faults.record import Deck, Injected
from packvit.train.step import checkpoint
from packvit.train.step.kept import find_checkpoints, step_of

TIMEOUT = 24.0  # seconds, train.timeout
# A life has to be over after its time-out, torchrun's own of 30 s and some for a machine with other work.
LIMIT = TIMEOUT + 30 + 10
BATCHES = 6  # of a step, whatever the number of ranks: data.streams
EARLY, EARLIEST, LATEST = 0.15, 0.5, 5.0  # share of lives that are hit while they start; and when, in seconds
MOST_STEPS = 25  # of a life, before it is hit
SAME_RANKS = 10  # lives in a row
# A traceback of our own; torchrun prints one of its own for whatever ends a rank.
TROUBLE = re.compile(
    rf'File "{re.escape(str(Path(checkpoint.__file__).parents[2]))}/|terminate called|SIGSEGV|SIGBUS'
)


class Campaign:
    """One run and all that is done to it.

    Args:
        folder: of the run and its logs.
        run_dir: of the run; on a disk of its own if that is to become full.
        flags: of `packvit.train`, but for what changes from life to life.
        deck: the faults to come.
        weather: what is done to its shards.
        environment: variables of its processes.

    Attributes:
        faults: that were done.
        wrong: what should not have happened.
        history: (step, ranks): from this step on, this many ranks computed what stands in the logs.
        lives: when each began and ended.
        last: the run's last step, in the end.
    """

    def __init__(
        self,
        folder: Path,
        run_dir: Path,
        flags: list[str],
        deck: Deck,
        weather: tuple[Network, Damage],
        environment: dict[str, str],
        rng: Random,
    ) -> None:
        self.folder, self.run_dir, self.flags, self.deck = folder, run_dir, flags, deck
        self.network, self.damage = weather
        self.environment, self.rng = environment, rng
        self.faults: list[Injected] = []
        self.wrong: list[str] = []
        self.history: list[tuple[int, int]] = []
        self.lives: list[tuple[float, float]] = []
        self.ranks, self.last = 2, 0
        self._open: list[Injected] = []  # faults after which no step was logged yet

    def newest(self) -> int:
        """The step of the newest checkpoint."""
        found = find_checkpoints(self.run_dir / "checkpoints")
        return step_of(found[-1]) if found else 0

    def play(self, deadline: float) -> None:
        """Do all faults of the deck; stop at `deadline`, of time.monotonic, or when too much is wrong."""
        while (self.deck.left() or self.damage.unnoticed) and len(self.wrong) < 5:
            if time.monotonic() > deadline:
                self.wrong.append(f"the time is over, {self.deck.left()} faults were not done")
                return
            self._live()
            done = len(self.faults)
            print(
                f"{self.folder.name}: life {len(self.lives)}, step {self.newest()}, {done} faults", flush=True
            )

    def finish(self, more: int) -> None:
        """Let the run come to its end in peace, after some more steps."""
        self.network.open = False
        self.damage.mend_all()
        last = self.newest() + more
        life = self._start(workers=1, background=False, steps=last)
        if not life.wait_for_step(1, LIMIT):
            self._note(life, "the last life does not train")
        if life.wait_for_end(LIMIT + more) is None:
            self._note(life, "the last life does not end")
        elif life.launcher.returncode:
            self._note(life, f"the last life ends with status {life.launcher.returncode}")
        self._over(life)
        self.last = self.newest()

    def _start(self, workers: int, background: bool, steps: int = 10**6) -> Life:
        flags = [*self.flags, "--run-dir", str(self.run_dir), "--data.workers", str(workers)]
        flags += ["--train.accumulate", str(BATCHES // self.ranks), "--train.steps", str(steps)]
        flags += ["--train.async-checkpoints"] if background else []
        log = self.folder / f"life-{len(self.lives):03d}.log"
        return Life(flags, self.ranks, log, self.environment)

    def _live(self) -> None:
        """One life."""
        rng = self.rng
        if self.lives and len(self.lives) % SAME_RANKS == 0:
            self.ranks = rng.choice([ranks for ranks in (1, 2, 3) if ranks != self.ranks])
        name = self.deck.endings.pop(0) if self.deck.endings else "SIGTERM to torchrun"
        ending = ENDINGS[name]
        rested = self._rest()
        self.damage.do_some()
        self.network.open = True
        workers = rng.choice((1, 2) if ending.workers else (0, 1, 2))
        life = self._start(workers, rng.random() < 0.5)
        early = ending.early and rested is None and rng.random() < EARLY
        if early:
            time.sleep(rng.uniform(EARLIEST, LATEST))
        elif not self._train(life, rested):
            self._over(life)
            self.deck.endings.append(name)
            return
        injected = Injected(name, time.monotonic())
        if ending.act(life, self.run_dir, rng):
            self.faults.append(injected)
            self._open.append(injected)
        else:
            self.deck.endings.append(name)
            life.kill()
        injected.ended = life.wait_for_end(LIMIT)
        if injected.ended is None:
            left = ", ".join(f"{p.role} {p.pid}" for p in life.processes())
            self._note(life, f"{name}: {left} still there after {LIMIT:.0f} s")
        self._over(life)
        (self.run_dir / BALLAST).unlink(missing_ok=True)
        self._look_back(life, injected)

    def _rest(self) -> Injected | None:
        """Do something to the run's folder, sometimes."""
        if not self.deck.resting or self.rng.random() > len(self.deck.resting) / max(
            1, len(self.deck.endings)
        ):
            return None
        name = self.deck.resting.pop(0)
        if not RESTING[name].act(self.run_dir, self.rng):
            self.deck.resting.append(name)
            return None
        self.faults.append(Injected(name, time.monotonic()))
        return self.faults[-1]

    def _train(self, life: Life, rested: Injected | None) -> bool:
        """Wait until it has trained for a while; False if it does not."""
        trains = life.wait_for_step(1, LIMIT)
        now = time.monotonic()
        if rested is not None:
            said = re.search(RESTING[rested.kind].says, life.output()) is not None
            rested.recovered, rested.outcome = now - life.began, "noticed" if said else "not noticed"
            if not said:
                self._note(life, f"{rested.kind}: nothing was said")
        if trains:
            for fault in self._open:
                fault.recovered = now - fault.at
            self._open = []
            self.damage.do_some()
            trains = life.wait_for_step(self.rng.randrange(1, MOST_STEPS), LIMIT)
        if not trains:
            self._note(life, "the run does not train")
            life.kill()
        return trains

    def _began(self, life: Life) -> None:
        """Remember who computes the steps from here on."""
        step = life.resumed()
        self.history = [(first, ranks) for first, ranks in self.history if first < step]
        self.history.append((step, life.ranks))

    def _over(self, life: Life) -> None:
        life.kill()
        self.lives.append((life.began, time.monotonic()))
        self.damage.look()
        if life.steps():
            self._began(life)

    def _look_back(self, life: Life, injected: Injected) -> None:
        """Compare what a life has made of its last fault with what was promised."""
        ending, steps, output = ENDINGS[injected.kind], life.steps(), life.output()
        if steps and (trouble := TROUBLE.search(output)):
            self._note(life, f"{injected.kind}: {trouble[0]} ... in the output")
        if ending.saves:
            saved = not steps or self.newest() >= steps[-1]
            injected.outcome = "saved" if steps and saved else "ended before the first step"
            if not saved:
                self._note(life, f"{injected.kind}: step {steps[-1]} is not saved")
        elif ending.says:
            injected.outcome = "said, and ended"
            if not re.search(ending.says, output):
                self._note(life, f"{injected.kind}: nothing was said of it")
        else:
            injected.outcome = "went on from the last checkpoint"

    def _note(self, life: Life, sentence: str) -> None:
        lines = life.output().splitlines()[-12:]
        self.wrong.append(f"{life.log}: {sentence}")
        print("\n".join([f"WRONG: {self.wrong[-1]}", *lines]), flush=True)
