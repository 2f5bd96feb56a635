"""What is asked of a run after all faults: nothing lost, nothing twice, nothing left over."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from packvit.common.json_lines import read_json_lines
from packvit.data import Shard
from packvit.data.streams.units import epoch_units
from packvit.packing import waiting_names
from packvit.train.step.kept import find_checkpoints, step_of

EXACT = ("step", "images_seen", "tokens_seen", "gflops_seen", "loss", "grad_norm", "lr", "padding_fraction")
# What a finished run without validation leaves; other names have no business in its folder.
LEFT = {
    ".lock", "audit.jsonl", "checkpoints", "config.json", "config.yaml", "curves.png", "drop.png", "loss.png",
    "metrics.jsonl", "model.safetensors", "samples", "skipped.jsonl",
}  # fmt: skip
CACHED = (".tar", ".json", ".lock", ".npz", ".manifest")


@dataclass
class Reads:
    """How often samples should have come, by a data state.

    Args:
        least, most: by key.
        exactly: by the number of the shard, over all its samples.
    """

    least: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    exactly: Counter[int] = field(default_factory=Counter)

    def add(self, shard: int, keys: Sequence[str], times: int = 1) -> None:
        """Each of these samples has come so many times more."""
        for count in (self.least, self.most):
            for key in keys:
                count[key] += times
        self.exactly[shard] += times * len(keys)


def expected_reads(data: dict[str, Any], shards: Sequence[list[str]], seed: int) -> Reads:
    """The samples that a run has seen or lost, by the state of its data; without looking at its logs.

    Args:
        data: of a checkpoint, with data.shuffle_shards=1 and a single source.
        shards: the keys of every shard when it was whole.
    """
    reads, streams = Reads(), data["num_streams"]
    for name, state in data["streams"].items():
        ((epoch, groups, offset, *sizes),) = state["readers"]
        epochs = [epoch_units(len(shards), streams, int(name), number, seed) for number in range(epoch + 1)]
        for unit in (*chain.from_iterable(epochs[:-1]), *epochs[-1][:groups]):
            reads.add(unit.shard, shards[unit.shard][unit.part :: unit.parts])
        if sizes:
            # In the middle of a unit: `offset` of the samples that it had when it was opened have come, and
            # what it lacked then is lost.
            unit = epochs[-1][groups]
            keys = shards[unit.shard][unit.part :: unit.parts]
            for key in keys:
                reads.most[key] += 1
            reads.exactly[unit.shard] += offset + len(keys) - len(range(unit.part, sizes[0], unit.parts))
        for _, shard, member, *_ in waiting_names(state):
            reads.add(shard, [shards[shard][member]], -1)
    return reads


def check_samples(run: Path, paths: Sequence[Path], seed: int) -> list[str]:
    """Compare what a run has seen, by audit.jsonl, and lost, by skipped.jsonl, with what it should have.

    Args:
        paths: whole copies of the shards, in the run's order, with names like theirs.

    Returns:
        A sentence for each shard or sample that does not come out.
    """
    newest = find_checkpoints(run / "checkpoints")[-1]
    data = json.loads((newest / "progress.json").read_text())["data"]
    opened = [Shard.open(path) for path in paths]
    shards = [[shard.key(i) for i in range(len(shard))] for shard in opened]
    expected = expected_reads(data, shards, seed)
    audit = read_json_lines(run / "audit.jsonl")
    seen = Counter(key for line in audit for key in line["keys"])
    wrong = []
    if [line["step"] for line in audit] != list(range(1, step_of(newest) + 1)):
        wrong.append("audit.jsonl does not hold every step once")
    named: Counter[str] = Counter()
    unnamed: Counter[str] = Counter()
    for line in read_json_lines(run / "skipped.jsonl"):
        if line["key"] is None:
            unnamed[Path(line["shard"]).name] += line.get("samples", 1)
        else:
            named[line["key"]] += 1
    for number, (path, keys) in enumerate(zip(paths, shards, strict=True)):
        came = sum(seen[key] + named[key] for key in keys) + unnamed[path.name]
        if came != expected.exactly[number]:
            wrong.append(f"{path.name}: {came} samples seen or named, {expected.exactly[number]} read")
        for key in keys:
            times = seen[key] + named[key]
            if not expected.least[key] - unnamed[path.name] <= times <= expected.most[key]:
                wrong.append(
                    f"{key}: seen or named {times} times, not {expected.least[key]}-{expected.most[key]}"
                )
    strange = seen.keys() - {key for keys in shards for key in keys}
    return wrong + [f"{key} is in no shard" for key in sorted(strange)]


def check_equal(run: Path, calm: Path) -> list[str]:
    """Compare a run with one that nothing happened to, bit for bit; a sentence for each difference."""
    wrong = []
    ours, theirs = read_json_lines(run / "metrics.jsonl"), read_json_lines(calm / "metrics.jsonl")
    if len(ours) != len(theirs):
        wrong.append(f"metrics.jsonl has {len(ours)} lines, {len(theirs)} of the calm run")
    values = [
        (one["step"], name)
        for one, two in zip(ours, theirs, strict=False)
        for name in EXACT
        if one[name] != two[name]
    ]
    if values:
        step, name = values[0]
        wrong.append(f"{len(values)} values of metrics.jsonl differ, first {name} of step {step}")
    files = ("audit.jsonl", "skipped.jsonl", "model.safetensors")
    differ = [name for name in files if (run / name).read_bytes() != (calm / name).read_bytes()]
    return wrong + [f"{name} differs from that of the calm run" for name in differ]


def check_left_over(run: Path, cache: Path) -> list[str]:
    """Files that a run should have removed; a sentence for each."""
    strange = [path for path in run.iterdir() if path.name not in LEFT]
    strange += [
        path for path in (run / "checkpoints").iterdir() if not path.name.startswith(("step-", "aside-step-"))
    ]
    strange += [path for path in cache.rglob("*") if path.is_file() and path.suffix not in CACHED]
    return [f"{path} is left over" for path in sorted(strange)]
