"""What sequences cost: FLOPs of a model's blocks, from the lengths of segments alone.

The blocks are those of `packvit.models`: linear layers grow with the slots, attention with the squared
lengths of the segments. Patch embedding, norms and head are left out, because they do not depend on how views
are packed. A backward pass doubles all of it, so shares and ratios hold for training, too.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from packvit.models import BlockConfig

MEGABATCH = 50  # batches that are sorted together, as Hugging Face's LengthGroupedSampler does


@dataclass(frozen=True)
class CostConfig:
    """The model whose cost is estimated.

    Args:
        width: D, channels of a token.
        depth: number of blocks.
        mlp_ratio: hidden units of the MLP / width.
    """

    width: int = 768
    depth: int = 12
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"model.width={self.width} and model.depth={self.depth} must be at least 1")
        assert self.block

    @cached_property
    def block(self) -> BlockConfig:
        """One of the blocks; how many heads it has changes no cost."""
        return BlockConfig(width=self.width, heads=1, mlp_ratio=self.mlp_ratio)

    def flops(self, work: "Work") -> int:
        """Forward FLOPs of all blocks."""
        return self.linear_flops(work) + self.attention_flops(work)

    def linear_flops(self, work: "Work") -> int:
        """The part that grows with the number of slots."""
        return self.depth * self.block.linear_flops(work.slots)

    def attention_flops(self, work: "Work") -> int:
        """The part that grows with the squares of the segments' lengths."""
        return self.depth * self.block.attention_flops(work.squares)

    def __str__(self) -> str:
        slot = self.block.linear_flops(1) / self.width**2
        return (
            f"forward FLOPs of {self.depth} blocks of width D = {self.width}: {self.depth} x ({slot:g} D² "
            "for each slot, padding included, + 4 D n² for the attention of each segment of n slots)"
        )


@dataclass(frozen=True)
class Work:
    """What a model is given to compute.

    Args:
        slots: positions, padding included.
        squares: sum of n² over the segments of n slots that attend to themselves.
    """

    slots: int
    squares: int


def alone(lengths: np.ndarray) -> Work:
    """Every view by itself, without any padding: the least that the lengths allow."""
    lengths = lengths.astype(np.int64)
    return Work(int(lengths.sum()), int((lengths**2).sum()))


def pad_to_longest(lengths: np.ndarray, batch_images: int) -> Work:
    """Batches of views in the order given, one a row, each row as long as the batch's longest view."""
    starts = np.arange(0, len(lengths), batch_images)
    longest = np.maximum.reduceat(lengths, starts).astype(np.int64)
    rows = np.diff(np.append(starts, len(lengths)))
    return Work(int((rows * longest).sum()), int((rows * longest**2).sum()))


def sorted_buckets(lengths: np.ndarray, batch_images: int) -> Work:
    """`pad_to_longest` after sorting each run of `MEGABATCH` batches by length.

    It is how Hugging Face groups by length; timm's buckets of sequence lengths pad about as much.
    """
    size = MEGABATCH * batch_images
    runs = [np.sort(lengths[start : start + size]) for start in range(0, len(lengths), size)]
    return pad_to_longest(np.concatenate(runs), batch_images)
