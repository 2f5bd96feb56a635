"""The copy of a run's folder in a store, kept up to date by all ranks of the run.

The run works in a folder of this machine. After each checkpoint every rank sends the files that it has
written; when all ranks have, the main rank sends logs and models, and at last the object that completes the
checkpoint. Whoever reads the store sees whole checkpoints, and what goes on from it loses what followed the
newest. Where the store does not take something the run goes on, and the next checkpoint brings it along; at
the end it is an error.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from packvit.common.files import write_whole
from packvit.common.ranks import Ranks
from packvit.common.stores.again import try_again
from packvit.common.stores.copies import RETRIES, send_object
from packvit.common.stores.objects import ANSWER_TIMEOUT, read_object, rename_object
from packvit.train.mirror.rest import Rest, delete_names, mark_first
from packvit.train.mirror.stored import (
    NOTHING,
    WRITER,
    Stored,
    place_of,
    read_states,
    state_of,
    write_states,
)
from packvit.train.step.kept import (
    CHECKPOINTS,
    PROGRESS,
    CheckpointConfig,
    aside_name,
    find_checkpoints,
    is_kept,
    name_of,
    step_of,
)


class TakenError(ValueError):
    """Another start of the run writes to the store."""


@dataclass
class Sent:
    """What a rank has sent: names in each checkpoint by its step, and why not all; empty if all.

    taken: whether it is because another start of the run writes to the store.
    """

    names: dict[int, list[str]] = field(default_factory=dict)
    trouble: str = ""
    taken: bool = False


class Mirror:
    """Sends the folder of a run to a store; every rank calls every method alike, unless it says otherwise.

    Args:
        url: of the run's folder in the store.
        folder: in which the run works; `fetch_run` has filled it.
        keep: which checkpoints stay in the store; as many as here.
        say: told on the main rank of what the store does not take.

    Attributes:
        keeper: whether this rank is the first of those that share the folder, and tidies it.
        unsent: steps of checkpoints that are here and not in the store.
        trouble: why the newest checkpoint is not in the store; empty if it is.
    """

    def __init__(
        self, url: str, folder: Path, ranks: Ranks, keep: CheckpointConfig, say: Callable[[str], None]
    ) -> None:
        self.url, self.folder, self.ranks, self.keep, self.say = url, folder, ranks, keep, say
        self.keeper = ranks.is_main
        self.unsent: list[int] = []
        self.trouble = ""
        self._writer = ""
        self._state = NOTHING
        self._rest = Rest(url, folder)

    def join(self, validates: bool) -> None:
        """Find out who shares the folder, when the ranks have found one another.

        Args:
            validates: whether the run evaluates its model, for which all ranks need one folder.

        Raises:
            ValueError: it does, and they have not.
        """
        self._writer = self.ranks.gather(uuid4().hex)[0]
        mark = f".rank-{self._writer}-"
        own = self.folder / f"{mark}{self.ranks.rank}"
        own.touch()
        self.ranks.barrier()
        there = [int(path.name.removeprefix(mark)) for path in self.folder.glob(f"{mark}*")]
        self.keeper = min(there) == self.ranks.rank
        shared = all(self.ranks.gather(0 in there))
        own.unlink()
        if validates and not shared:
            raise ValueError(
                f"the machines of the run do not share {self.folder}, and evaluation needs that: set "
                "PACKVIT_CACHE to a folder that they share, or leave out data.val_shards and run packvit eval"
            )

    def begin(self, step: int) -> None:
        """Take the store over for a run that goes on after `step`, or begins.

        Later checkpoints are renamed there, too, and those that are not complete are removed.

        Raises:
            OSError: the store does not take it.
            ValueError: the ranks have found different checkpoints.
        """
        if len(set(self.ranks.gather(step))) > 1:
            raise ValueError(f"{self.url} has changed while the run started: start it again")
        trouble = ""
        if self.ranks.is_main:
            try:
                self._take_over(step)
            except OSError as error:
                trouble = str(error)
        self._agree(trouble)
        self.unsent, self._state = self.ranks.gather((self.unsent, self._state))[0]
        if self.keeper:
            write_states(self.folder, [self._state])

    def _take_over(self, step: int) -> None:
        """The main rank's part of `begin`."""
        note = self.folder / ".writer"
        write_whole(note, self._writer)
        send_object(note, f"{self.url}/{WRITER}")
        stored = Stored.look(self.url)
        for other, complete in stored.checkpoints().items():
            names = stored.below(place_of(other))
            if not complete:
                delete_names(self.url, names)
            elif other > step:
                self._set_aside(stored, other, names)
        self._rest.send(stored)
        steps = [other for other in stored.steps() if other <= step]
        if steps and (self.folder / place_of(steps[-1])).exists():
            self._state = state_of(steps[-1], self.folder / place_of(steps[-1]) / PROGRESS)
        else:
            self._state = read_states(self.folder)[0] if steps else NOTHING
        here = map(step_of, find_checkpoints(self.folder / CHECKPOINTS))
        self.unsent = [other for other in here if other not in steps]

    def _set_aside(self, stored: Stored, step: int, names: Sequence[str]) -> None:
        """Rename a checkpoint that must not be taken for the newest any more."""
        aside = aside_name(name_of(step), lambda name: bool(stored.below(f"{CHECKPOINTS}/{name}")))
        target = f"{CHECKPOINTS}/{aside}"
        for name in mark_first(names, PROGRESS):
            try:
                rename_object(f"{self.url}/{name}", f"{self.url}/{target}/{name.split('/', 2)[2]}")
            except OSError as error:
                raise OSError(f"{self.url}/{name} cannot be renamed: {error}") from error

    def send(self, step: int = 0, partial: Path | None = None) -> Sent:
        """Send the files that this rank has written of a checkpoint, and of those that are still unsent.

        No rank waits for another; it may be called in a thread while training goes on.

        Args:
            step: of the checkpoint; 0 for none.
            partial: where it lies.
        """
        places = {other: self.folder / place_of(other) for other in self.unsent}
        if partial is not None:
            places[step] = partial
        sent = Sent()
        try:
            for number, place in places.items():
                for file in self._own_files(place):
                    name = file.relative_to(place).as_posix()
                    if name != PROGRESS:
                        self._check_writer()  # what another has sent must stay as it is
                        send_object(file, f"{self.url}/{place_of(number)}/{name}")
                    sent.names.setdefault(number, []).append(name)
        except (OSError, TakenError) as error:
            sent.trouble, sent.taken = str(error), isinstance(error, TakenError)
        return sent

    def _own_files(self, place: Path) -> Iterator[Path]:
        """Files that this rank has written, or a rank that is no more; the main rank's last."""
        for file in sorted(file for file in place.rglob("*") if file.is_file()):
            found = re.fullmatch(r"(?:__|hashes-)(\d+)(?:_\d+\.distcp|\.json)", file.name)
            if (int(found[1]) if found else 0) % self.ranks.world_size == self.ranks.rank:
                yield file

    def publish(self, sent: Sent) -> None:
        """Complete the checkpoints that all ranks have sent, and remove old ones.

        Raises:
            ValueError: another start of the run writes to the store.
        """
        everyone = self.ranks.gather(sent)
        taken = any(one.taken for one in everyone)
        trouble = next((one.trouble for one in everyone if one.trouble and one.taken == taken), "")
        if self.ranks.is_main and not trouble:
            try:
                self._publish(everyone)
            except TakenError as error:
                taken, trouble = True, str(error)
            except OSError as error:
                trouble = str(error)
        taken, self.trouble, self._state = self.ranks.gather((taken, trouble, self._state))[0]
        if taken:
            raise TakenError(self.trouble)
        if self.trouble and self.ranks.is_main:
            self.say(f"{self.trouble}; it lies in {self.folder}, and the next checkpoint tries again")
        if self.keeper and not self.trouble:
            write_states(self.folder, [self._state])
        steps = {step for one in everyone for step in one.names} | set(self.unsent)
        self.unsent = sorted(steps) if self.trouble else []

    def _publish(self, everyone: Sequence[Sent]) -> None:
        self._check_writer()
        stored = Stored.look(self.url)
        self._rest.send(stored)
        names: dict[int, set[str]] = {}
        for one in everyone:
            for step, some in one.names.items():
                names.setdefault(step, set()).update(some)
        complete = set(stored.steps())
        for step in sorted(names):
            progress = self.folder / place_of(step) / PROGRESS
            if not progress.exists():
                continue  # removed by now, as older ones are
            ranks = range(json.loads(progress.read_text())["ranks"])
            if absent := [rank for rank in ranks if f"hashes-{rank:05d}.json" not in names[step]]:
                raise OSError(f"{self.url}/{place_of(step)}: the files of rank {absent[0]} are not here")
            own = {f"{place_of(step)}/{name}" for name in names[step]}
            delete_names(self.url, [name for name in stored.below(place_of(step)) if name not in own])
            after = state_of(step, progress) if step >= max(complete, default=0) else self._state
            write_states(self.folder, [self._state, after])
            send_object(progress, f"{self.url}/{place_of(step)}/{PROGRESS}")
            self._state = after
            complete.add(step)
        for step in sorted(complete):
            if not is_kept(step, sorted(complete), self.keep):
                delete_names(self.url, mark_first(stored.below(place_of(step)), PROGRESS))

    def finish(self) -> None:
        """Send all that the run has left.

        Raises:
            OSError: the store does not take it; says where it lies.
            ValueError: another start of the run writes to the store.
        """
        if self.unsent:
            self.publish(self.send())
        trouble = self.trouble
        if self.ranks.is_main and not trouble:
            try:
                self._check_writer()
                self._rest.send(Stored.look(self.url))
            except (OSError, TakenError) as error:
                trouble = str(error)
        self._agree(trouble)

    def salvage(self) -> None:
        """Send logs and what else there is of a run that ends with an error; the main rank alone."""
        if self.ranks.is_main and self._writer:
            with suppress(OSError, TakenError):
                self._check_writer()
                self._rest.send(Stored.look(self.url))

    def _agree(self, trouble: str) -> None:
        """Raise on all ranks what went wrong on the main one."""
        trouble = self.ranks.gather(trouble)[0]
        if trouble:
            raise OSError(f"{trouble}; the run lies in {self.folder}, and the same command goes on with it")

    def _check_writer(self) -> None:
        try:
            there, _ = try_again(lambda: read_object(f"{self.url}/{WRITER}", 0, 100, ANSWER_TIMEOUT), RETRIES)
        except OSError as error:
            raise OSError(f"{self.url}/{WRITER} cannot be read: {error}") from error
        if there != self._writer.encode():
            raise TakenError(f"another run writes to {self.url} by now: this one has ended")
