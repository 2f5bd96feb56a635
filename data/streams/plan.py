"""Everything that determines which batches a run sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from packvit.data.config import DataConfig
from packvit.data.samples.targets import Target
from packvit.data.shards.paths import ShardSet
from packvit.packing import PackingConfig, ViewsConfig


@dataclass(frozen=True)
class DataPlan:
    """What is read, how it is shown and packed; equal plans give equal batches.

    Args:
        data, views, packing: configurations.
        seed: seed of the order, the views and everything else that is random.
        targets: kinds of targets that every sample must have, by name.
        teachers: (patch size, resolution in pixels) of each teacher, which sees every image with all tokens
            in the crop and flip of its view. They change neither the views nor the state.
        pairs: whether every sample is shown twice with the same crop and flip, each time at its own
            resolution, patch size, stride and drop rate: images 2i and 2i + 1 of a batch are of one sample.
        shards: the shards of `data.shards`, found when the plan is made.

    Raises:
        ValueError: no shard matches; see `expand_shards`.
    """

    data: DataConfig
    views: ViewsConfig
    packing: PackingConfig
    seed: int = 0
    targets: Mapping[str, Target] = field(default_factory=dict)
    teachers: tuple[tuple[int, int], ...] = ()
    pairs: bool = False
    shards: ShardSet = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", ShardSet.find(self.data.shards, self.data.fetch))

    @property
    def shown(self) -> int:
        """Number of images in a batch for one sample."""
        return 2 if self.pairs else 1

    @property
    def sources(self) -> list[range]:
        """Numbers of the shards of each source: each entry that `data.weights` mixes, or all together."""
        if not self.data.weights:
            return [range(len(self.shards))]
        ends = list(accumulate(self.shards.counts))
        return [range(end - count, end) for end, count in zip(ends, self.shards.counts, strict=True)]

    @property
    def shares(self) -> list[float]:
        """Share of the samples from each source."""
        weights = self.data.weights or (1.0,)
        return [weight / sum(weights) for weight in weights]
