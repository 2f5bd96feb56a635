"""Verify shards: read and decode every sample, and name everything that a run would have to leave out."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from packvit.common.engine.engine import Engine
from packvit.common.engine.local import LocalEngine
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
        looked_at: number of these samples.
    """

    shards: int = 0
    samples: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)
    fields: Counter[str] = field(default_factory=Counter)
    numbers: Counter[str] = field(default_factory=Counter)
    looked_at: int = 0

    def add(self, kind: str, sentence: str) -> None:
        """Note a problem."""
        self.problems.setdefault(kind, []).append(sentence)

    def take(self, findings: "Findings", first_seen: dict[str, str]) -> None:
        """Add what was found in the next shard.

        Args:
            first_seen: {key: shard that has it} of those before, to which this one's are added.
        """
        path, problems = findings.path, deque(findings.problems)
        self.shards += 1
        self.samples += len(findings.keys)
        for index, key in enumerate(findings.keys):
            while problems and problems[0][0] < index:
                self.add(*problems.popleft()[1:])
            if key in first_seen:
                self.add("keys used twice", f"{path}: sample {key!r} is already in {first_seen[key]}")
            first_seen.setdefault(key, path)
        for _, kind, sentence in problems:
            self.add(kind, sentence)
        room = LOOKED_AT - self.looked_at
        for fields, places in findings.instead[:room]:
            self.fields.update(fields)
            self.numbers.update(places)
        self.looked_at += len(findings.instead[:room])

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
    engine: Engine | None = None,
) -> ShardReport:
    """Decode every image and read every label of the shards; a missing label counts as a problem.

    Args:
        patterns: like `data.shards`.
        progress: called with (shards done, shards) after each one.
        labels: where the labels are, and their kind.
        fetch: how shards that are not local tar files are fetched.
        engine: where the shards are read; by default in this process.

    Raises:
        ValueError: a pattern matches nothing.
    """
    report = ShardReport()
    shards = ShardSet.find(patterns, fetch)
    first_seen: dict[str, str] = {}
    engine = LocalEngine() if engine is None else engine
    for findings in engine.run("checking", check_shard, [(path, labels, fetch) for path in shards.paths]):
        report.take(findings, first_seen)
        if progress:
            progress(report.shards, len(shards))
    return report


@dataclass
class Findings:
    """What is found in one shard, whatever the others are.

    Args:
        path: of the shard, without secrets.
        keys: of its samples, in their order.
        problems: (number of the sample, kind, sentence), in their order; -1 is the shard before its samples.
        instead: of the first samples without a good label, their fields and where they have whole numbers.
    """

    path: str
    keys: list[str] = field(default_factory=list)
    problems: list[tuple[int, str, str]] = field(default_factory=list)
    instead: list[tuple[tuple[str, ...], list[str]]] = field(default_factory=list)


def check_shard(path: str, labels: ClassTarget, fetch: FetchConfig) -> Findings:
    """Decode every image and read every label of one shard."""
    findings = Findings(redact(path))
    try:
        _check_shard(Shard.open(path, fetch), findings, labels)
    except BadShard as error:
        findings.problems.append((len(findings.keys), "broken shards", str(error)))
    return findings


def _check_shard(shard: Shard, findings: Findings, labels: ClassTarget) -> None:
    path = findings.path
    for problem in shard.problems:
        findings.problems.append((-1, "damaged shards", f"{path}: {problem}"))
    if len(shard) == 0:
        findings.problems.append((-1, "empty shards", f"{path} holds no sample"))
    for index in range(len(shard)):
        key = shard.key(index)
        findings.keys.append(key)
        try:
            native_size = read_native_size(shard, index)
            decode(shard.image(index), full_view(native_size, 1), native_size)
        except BadSample as error:
            findings.problems.append((index, "broken images", str(error)))
        except ValueError as error:
            findings.problems.append((index, "broken images", f"{path}: sample {key!r}: {error}"))
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
            kind, sentence = problem
            findings.problems.append((index, kind, sentence))
            if len(findings.instead) < LOOKED_AT:
                findings.instead.append((shard.fields(index), find_numbers(shard, index, labels.field)))


def find_numbers(shard: Shard, index: int, known: str) -> list[str]:
    """Where whole numbers stand in a sample, as `label_field` names places.

    Args:
        known: the field that is known not to be a label.
    """
    found: list[str] = []
    for name in shard.fields(index):
        try:
            if name.rpartition(".")[2] == "json":
                places = list(number_places(json.loads(shard.read(index, name)), name, ":"))
            else:
                # A label is short; images are not read again to find that they are none.
                places = [name] if name not in IMAGE_FIELDS and shard.label(index, name) is not None else []
        except (BadSample, ValueError):
            continue
        found += [place for place in places if place != known]
    return found


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
