"""One sample of a shard: read and checked, decoded, cut as its views say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from packvit.data.decode import decode
from packvit.data.labels import Labels, read_caption
from packvit.data.shards import BadSample, BadShard, Shard
from packvit.data.taught import StoredLogits
from packvit.data.transforms import DropPattern, cut_image
from packvit.packing import PackedImage, View


@dataclass(frozen=True, slots=True)
class DecodedSample:
    """A sample's pixels in every view, before they are cut.

    Args:
        key, native_size, label, logits, caption: see PackedImage.
        seed: a function of (seed, epoch, key); decides which tokens are dropped.
        views: how it is shown, first to the student.
        pixels: uint8 [view.height, view.width, 3] of each view.
        pattern: of dropping; see `kept_positions`.
    """

    key: str
    native_size: tuple[int, int]
    label: int | np.ndarray | None
    logits: np.ndarray | None
    seed: int
    views: Sequence[View]
    pixels: Sequence[np.ndarray]
    pattern: DropPattern = "random"
    caption: str | None = None

    def cut(self) -> list[PackedImage]:
        """The kept patches in each view; the first carries the logits and the caption."""
        first, *others = [
            cut_image(pixels, view, self.native_size, self.seed, self.label, self.key, self.pattern)
            for pixels, view in zip(self.pixels, self.views, strict=True)
        ]
        return [replace(first, logits=self.logits, caption=self.caption), *others]


def decode_sample(
    shard: Shard,
    member: int,
    views: Sequence[View],
    native_size: tuple[int, int],
    seed: int,
    labels: Labels,
    stored: StoredLogits | None = None,
    pattern: DropPattern = "random",
    caption_field: str = "",
) -> DecodedSample:
    """Sample `member` of `shard` in each view; `seed` and `pattern` decide which tokens are dropped.

    Raises:
        BadSample: it cannot be decoded, or lacks a label that `labels` wants, logits that `stored` names or a
            caption.
    """
    key = shard.key(member)
    label = labels.read(shard, member)
    logits = stored.read(shard, member) if stored else None
    caption = read_caption(shard, member, caption_field) if caption_field else None
    data = shard.image(member)
    try:
        pixels = [decode(data, view, native_size) for view in views]
    except ValueError as error:
        raise BadSample(shard.path, key, str(error)) from error
    return DecodedSample(key, native_size, label, logits, seed, views, pixels, pattern, caption)


def describe_skipped(error: BadSample | BadShard) -> dict:
    """A line of `skipped.jsonl`: shard, key (None for a whole shard) and reason."""
    if isinstance(error, BadSample):
        return {"shard": error.shard, "key": error.key, "reason": error.reason}
    return {"shard": error.shard, "key": None, "reason": error.reason}
