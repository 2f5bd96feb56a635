"""The headers of all samples of a set, read shard by shard in this process or by an engine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from socket import gethostname

from packvit.common.engine.engine import Engine
from packvit.data.samples.decode import read_header
from packvit.data.samples.sample import Header, Reference, describe_skipped
from packvit.data.samples.targets import Target
from packvit.data.shards.paths import ShardSet
from packvit.data.shards.redact import redact
from packvit.data.shards.shard import BadSample, BadShard, Shard, UnknownLabel


@dataclass
class Scanned:
    """What a shard has.

    Args:
        headers: headers of the samples that can be used.
        skipped: {"shard", "key", "reason"} of the others.
        unknown_labels: those of `skipped` whose labels are not among the classes of a target.
        lost_on: name of the machine that could not open the shard; None if it could.
    """

    headers: list[Header] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)
    unknown_labels: list[dict] = field(default_factory=list)
    lost_on: str | None = None


@dataclass(frozen=True)
class Scanner:
    """Reads headers.

    Args:
        shards: the shards.
        targets: kinds of targets that every sample must have, by name; samples without them are skipped.
    """

    shards: ShardSet
    targets: Mapping[str, Target]

    def scan_all(self, engine: Engine | None = None) -> Iterator[Scanned]:
        """What each shard has, in their order.

        Args:
            engine: reads the shards, one job each; by default this process does.

        Raises:
            ValueError: a machine of the engine cannot open a shard that this one can.
        """
        if engine is None:
            yield from map(self.scan, range(len(self.shards)))
            return
        jobs = [(redact(path), number) for number, path in enumerate(self.shards.paths)]
        for number, found in enumerate(engine.run("reading headers", scan_shard, jobs, self.on_device)):
            if found.lost_on is not None:
                self._check_lost(number, found)
            yield found

    def _check_lost(self, number: int, found: Scanned) -> None:
        try:
            self.shards.open(number)
        except BadShard:
            return  # it is as bad here
        shard, reason = redact(self.shards.paths[number]), found.skipped[0]["reason"]
        raise ValueError(f"{found.lost_on}: {shard}: {reason}: all machines must share the shards")

    def on_device(self, _: str) -> "Scanner":
        """This scanner, which needs no device."""
        return self

    def scan(self, number: int) -> Scanned:
        """What one shard has."""
        found = Scanned()
        try:
            self._read(number, self.shards.open(number), found)
        except BadShard as error:
            return Scanned(skipped=[describe_skipped(error)], lost_on=gethostname())
        return found

    def _read(self, number: int, shard: Shard, found: Scanned) -> None:
        found.skipped += [{"shard": redact(shard.path), "key": None, "reason": p} for p in shard.problems]
        for member in range(len(shard)):
            try:
                for kind in self.targets.values():
                    kind.read(shard, member)
                found.headers.append(read_header(shard, Reference(0, number, member, 0)))
            except (BadSample, BadShard) as error:
                found.skipped.append(describe_skipped(error))
                if isinstance(error, UnknownLabel):
                    found.unknown_labels.append(found.skipped[-1])


def scan_shard(scanner: Scanner, _: str, number: int) -> Scanned:
    """What one shard has: a job, named by its first argument."""
    return scanner.scan(number)
