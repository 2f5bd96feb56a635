"""All that decides which batches a run sees."""

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
        seed: of the order, the views and all else that is random.
        targets: kinds that every sample must come with, by name.
        teachers: (patch size, resolution in pixels) of each teacher, which sees every image whole in the crop
            and flip of its view. They change neither the views nor the state.
        pairs: whether every sample is shown twice, in one crop and flip, each time at a resolution, patch
            size, stride and drop rate of its own: images 2i and 2i + 1 of a batch are of one sample.
        shards: those of `data.shards`, found when the plan is made.

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
        """Images of a batch that one sample gives."""
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
        """Share of the samples that each source gives."""
        weights = self.data.weights or (1.0,)
        return [weight / sum(weights) for weight in weights]
