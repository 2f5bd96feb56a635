"""One sample of a shard, read, checked and cut as its views say."""

from collections.abc import Sequence
from dataclasses import replace

from packvit.data.shards import BadSample, BadShard, Shard
from packvit.data.taught import StoredLogits
from packvit.data.transforms import DropPattern, present
from packvit.packing import PackedImage, View


def load_sample(
    shard: Shard,
    member: int,
    views: Sequence[View],
    native_size: tuple[int, int],
    seed: int,
    num_classes: int | None,
    stored: StoredLogits | None = None,
    pattern: DropPattern = "random",
) -> list[PackedImage]:
    """Sample `member` of `shard` as each view shows it; `seed` and `pattern` decide which tokens are dropped.

    The first of them carries the logits that `stored` finds.

    Raises:
        BadSample: it cannot be decoded; with `num_classes` given, it has no label in 0..num_classes-1; with
            `stored` given, it has no such logits.
    """
    key = shard.key(member)
    label = label_of(shard, member, num_classes)
    logits = stored.read(shard, member) if stored else None
    data = shard.image(member)
    try:
        first, *others = [present(data, view, native_size, seed, label, key, pattern) for view in views]
    except ValueError as error:
        raise BadSample(shard.path, key, str(error)) from error
    return [replace(first, logits=logits), *others]


def label_of(shard: Shard, member: int, num_classes: int | None) -> int | None:
    """The class index of a sample; None where it has none and `num_classes` is not given.

    Raises:
        BadSample: with `num_classes` given, there is no label in 0..num_classes-1.
    """
    label = shard.label(member)
    if num_classes is not None:
        if label is None:
            raise BadSample(shard.path, shard.key(member), "it has no label")
        if not 0 <= label < num_classes:
            raise BadSample(
                shard.path, shard.key(member), f"its label {label} is not in 0..{num_classes - 1}"
            )
    return label


def describe_skipped(error: BadSample | BadShard) -> dict:
    """A line of `skipped.jsonl`: shard, key (None for a whole shard) and reason."""
    if isinstance(error, BadSample):
        return {"shard": error.shard, "key": error.key, "reason": error.reason}
    return {"shard": error.shard, "key": None, "reason": error.reason}
