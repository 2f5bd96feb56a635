"""One sample of a shard: read and checked, decoded, cut as its views say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from packvit.data.decode import decode
from packvit.data.shards import BadSample, BadShard, Shard
from packvit.data.taught import StoredLogits
from packvit.data.transforms import DropPattern, cut_image
from packvit.packing import PackedImage, View


@dataclass(frozen=True, slots=True)
class DecodedSample:
    """A sample's pixels in every view, before they are cut.

    Args:
        key, native_size, label, logits: see PackedImage.
        seed: a function of (seed, epoch, key); decides which tokens are dropped.
        views: how it is shown, first to the student.
        pixels: uint8 [view.height, view.width, 3] of each view.
        pattern: of dropping; see `kept_positions`.
    """

    key: str
    native_size: tuple[int, int]
    label: int | None
    logits: np.ndarray | None
    seed: int
    views: Sequence[View]
    pixels: Sequence[np.ndarray]
    pattern: DropPattern = "random"

    def cut(self) -> list[PackedImage]:
        """The kept patches in each view; the first carries the logits."""
        first, *others = [
            cut_image(pixels, view, self.native_size, self.seed, self.label, self.key, self.pattern)
            for pixels, view in zip(self.pixels, self.views, strict=True)
        ]
        return [replace(first, logits=self.logits), *others]


def decode_sample(
    shard: Shard,
    member: int,
    views: Sequence[View],
    native_size: tuple[int, int],
    seed: int,
    num_classes: int | None,
    stored: StoredLogits | None = None,
    pattern: DropPattern = "random",
) -> DecodedSample:
    """Sample `member` of `shard` in each view; `seed` and `pattern` decide which tokens are dropped.

    Raises:
        BadSample: it cannot be decoded; with `num_classes` given, it has no label in 0..num_classes-1; with
            `stored` given, it has no such logits.
    """
    key = shard.key(member)
    label = label_of(shard, member, num_classes)
    logits = stored.read(shard, member) if stored else None
    data = shard.image(member)
    try:
        pixels = [decode(data, view, native_size) for view in views]
    except ValueError as error:
        raise BadSample(shard.path, key, str(error)) from error
    return DecodedSample(key, native_size, label, logits, seed, views, pixels, pattern)


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
