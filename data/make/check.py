"""Verify shards: read and decode every sample, and name whatever a run would have to leave out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from packvit.data.samples.decode import decode, read_native_size
from packvit.data.samples.targets import ClassTarget
from packvit.data.shards.fetch import FETCH, FetchConfig
from packvit.data.shards.paths import ShardSet
from packvit.data.shards.redact import redact
from packvit.data.shards.shard import BadSample, BadShard, Shard
from packvit.packing import full_view

LABELS = ClassTarget()


@dataclass
class ShardReport:
    """What `check_shards` found.

    Args:
        shards, samples: counts of all that were looked at.
        problems: sentences by kind; empty when all is well.
    """

    shards: int = 0
    samples: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, sentence: str) -> None:
        """Note a problem."""
        self.problems.setdefault(kind, []).append(sentence)

    def __str__(self) -> str:
        lines = [f"{self.shards} shards, {self.samples} samples"]
        for kind, sentences in self.problems.items():
            lines += [f"{kind}: {len(sentences)}", *(f"  {sentence}" for sentence in sentences)]
        return "\n".join(lines if self.problems else [*lines, "no problems"])


def check_shards(
    patterns: str | Sequence[str],
    progress: Callable[[int, int], None] | None = None,
    labels: ClassTarget = LABELS,
    fetch: FetchConfig = FETCH,
) -> ShardReport:
    """Decode every image and read every label of the shards; a missing label counts as a problem.

    Args:
        patterns: as `data.shards`.
        progress: called with (shards done, shards) after each one.
        labels: where they are, and of which kind.
        fetch: how shards that are not local tar files are fetched.

    Raises:
        ValueError: a pattern matches nothing.
    """
    report = ShardReport()
    shards = ShardSet.find(patterns, fetch)
    first_seen: dict[str, str] = {}
    for number in range(len(shards)):
        report.shards += 1
        try:
            _check_shard(shards.open(number), report, first_seen, labels)
        except BadShard as error:
            report.add("broken shards", str(error))
        if progress:
            progress(number + 1, len(shards))
    return report


def _check_shard(shard: Shard, report: ShardReport, first_seen: dict[str, str], labels: ClassTarget) -> None:
    path = redact(shard.path)
    for problem in shard.problems:
        report.add("damaged shards", f"{path}: {problem}")
    if len(shard) == 0:
        report.add("empty shards", f"{path} holds no sample")
    for index in range(len(shard)):
        report.samples += 1
        key = shard.key(index)
        if key in first_seen:
            report.add("keys used twice", f"{path}: sample {key!r} is already in {first_seen[key]}")
        first_seen.setdefault(key, path)
        try:
            native_size = read_native_size(shard, index)
            decode(shard.image(index), full_view(native_size, 1), native_size)
        except BadSample as error:
            report.add("broken images", str(error))
        except ValueError as error:
            report.add("broken images", f"{path}: sample {key!r}: {error}")
        try:
            label = labels.find(shard, index)
            if label is None:
                report.add("no label", f"{path}: sample {key!r}")
            elif np.min(label, initial=0) < 0:
                report.add("bad labels", f"{path}: sample {key!r}: its label is {label}")
        except BadSample as error:
            report.add("bad labels", str(error))
