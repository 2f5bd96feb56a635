"""Verify shards: read and decode every sample, and name everything that a run would have to leave out."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from packvit.data.samples.decode import decode, read_native_size
from packvit.data.samples.targets import ClassTarget
from packvit.data.shards.fetch import FETCH, FetchConfig
from packvit.data.shards.paths import ShardSet
from packvit.data.shards.redact import redact
from packvit.data.shards.shard import IMAGE_FIELDS, BadSample, BadShard, Shard
from packvit.packing import full_view

LABELS = ClassTarget()
SHOWN = 10  # problems of a kind that are printed
NO_LABEL, BAD_LABELS = "no label", "bad labels"
LOOKED_AT = 100  # samples without a good label, for what they have instead
USUAL = ("label", "cls", "class", "target", "category")  # names of labels, the likeliest first


@dataclass
class ShardReport:
    """What `check_shards` found.

    Args:
        shards, samples: numbers of shards and samples that were checked.
        problems: sentences by kind; empty if there are none.
        fields: fields of samples without a good label, with how many of the first LOOKED_AT have each.
        numbers: places of whole numbers in these samples, in the notation of `label_field`, likewise.
    """

    shards: int = 0
    samples: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)
    fields: Counter[str] = field(default_factory=Counter)
    numbers: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, sentence: str) -> None:
        """Note a problem."""
        self.problems.setdefault(kind, []).append(sentence)

    def __str__(self) -> str:
        lines = [f"{self.shards} shards, {self.samples} samples"]
        for kind, sentences in self.problems.items():
            lines += [f"{kind}: {len(sentences)}", *(f"  {sentence}" for sentence in sentences[:SHOWN])]
            lines += [f"  and {len(sentences) - SHOWN:,} more like it"] if len(sentences) > SHOWN else []
        return "\n".join([*lines, *self._advice()] if self.problems else [*lines, "no problems"])

    def _advice(self) -> Iterator[str]:
        """Where labels may be instead."""
        if self.fields:
            advice = f"fields seen in samples without a good label: {', '.join(self.fields)}"
            if self.numbers:
                likely = max(self.numbers, key=lambda place: (usual(place), self.numbers[place]))
                advice += f": try --label-field {likely} (in training --data.label-field {likely})"
            yield advice


def check_shards(
    patterns: str | Sequence[str],
    progress: Callable[[int, int], None] | None = None,
    labels: ClassTarget = LABELS,
    fetch: FetchConfig = FETCH,
) -> ShardReport:
    """Decode every image and read every label of the shards; a missing label counts as a problem.

    Args:
        patterns: like `data.shards`.
        progress: called with (shards done, shards) after each one.
        labels: where the labels are, and their kind.
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
        problem = None
        try:
            label = labels.find(shard, index)
            if label is None:
                problem = NO_LABEL, f"{path}: sample {key!r}"
            elif np.min(label, initial=0) < 0:
                problem = BAD_LABELS, f"{path}: sample {key!r}: its label is {label}"
        except BadSample as error:
            problem = BAD_LABELS, str(error)
        if problem is not None:
            report.add(*problem)
            if sum(len(report.problems.get(kind, ())) for kind in (NO_LABEL, BAD_LABELS)) <= LOOKED_AT:
                look_for_labels(shard, index, report, labels.field)


def look_for_labels(shard: Shard, index: int, report: ShardReport, known: str) -> None:
    """Note which fields a sample has, and where it has whole numbers.

    Args:
        known: the field that is known not to be a label.
    """
    report.fields.update(shard.fields(index))
    for name in shard.fields(index):
        try:
            if name.rpartition(".")[2] == "json":
                places = list(number_places(json.loads(shard.read(index, name)), name, ":"))
            else:
                # A label is short; images are not read again to find that they are none.
                places = [name] if name not in IMAGE_FIELDS and shard.label(index, name) is not None else []
        except (BadSample, ValueError):
            continue
        report.numbers.update(place for place in places if place != known)


def number_places(value: Any, place: str, between: str) -> Iterator[str]:
    """The places of whole numbers in a JSON value, such as json:label and json:meta.label."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from number_places(inner, f"{place}{between}{name}", ".")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield place


def usual(place: str) -> int:
    """A score of how much the name of a place resembles the usual names of labels."""
    name = place.replace(":", ".").rpartition(".")[2].lower()
    return next((len(USUAL) - rank for rank, word in enumerate(USUAL) if word in name), 0)
