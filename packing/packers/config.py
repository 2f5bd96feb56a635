"""The packers by name, their configuration, and packing of a whole list.

`oldest_first` is the default; `exact_fill` has no padding at all, but drops a few more tokens. The others
exist for comparison: docs/packing.md has the numbers.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from packvit.packing.packers.baselines import BestFit, BestFitDecreasing, FirstFit, NextFit
from packvit.packing.packers.oldest_first import ExactFill, OldestFirst
from packvit.packing.packers.packer import Packer

Algorithm = Literal["oldest_first", "exact_fill", "best_fit_decreasing", "best_fit", "first_fit", "next_fit"]


@dataclass(frozen=True)
class PackingConfig:
    """How views are packed.

    Args:
        seq_len: S, slots in a sequence.
        sequences: B, sequences in a batch of one rank.
        algorithm: see docs/packing.md.
        lookahead: views that wait in a packer, for algorithms that choose among them.
        oversize: what happens to a view of more than S tokens: `shrink` shows the image at a lower
            resolution, `own_row` gives it as many whole sequences of the batch as it needs, `error` stops and
            names the image.
        max_images: maximum number of images in a sequence; None: unlimited.
        max_batch_images: maximum number of images in a batch (NaViT's E_max), divided equally among its
            sequences; None: unlimited.
        balance: number of batches whose sequences are exchanged so that all batches cost about the same; 1
            exchanges none. No more than two once 3,000 images wait.
    """

    seq_len: int = 1024
    sequences: int = 8
    algorithm: Algorithm = "oldest_first"
    lookahead: int = 256
    oversize: Literal["shrink", "own_row", "error"] = "shrink"
    max_images: int | None = None
    max_batch_images: int | None = None
    balance: int = 16

    def __post_init__(self) -> None:
        for name in ("seq_len", "sequences", "lookahead", "max_images", "balance"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"packing.{name}={value} must be at least 1")
        if self.max_batch_images is not None and self.max_batch_images < self.sequences:
            raise ValueError(
                f"packing.max_batch_images={self.max_batch_images} leaves some of the "
                f"{self.sequences} sequences without an image: it must be at least packing.sequences"
            )
        if self.algorithm not in PACKERS:
            raise ValueError(f"packing.algorithm={self.algorithm!r} is not one of {', '.join(PACKERS)}")

    @property
    def sequence_images(self) -> int | None:
        """Maximum number of images in a sequence, so that neither it nor its batch has too many."""
        limits = [self.max_images, self.max_batch_images and self.max_batch_images // self.sequences]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def whole_views(self) -> Algorithm:
        """`algorithm`, or `oldest_first` if it shortens items, because evaluation never drops tokens."""
        return "oldest_first" if self.algorithm in SHORTENING else self.algorithm

    def new_packer(self) -> Packer:
        """The packer that this configuration describes, with nothing waiting."""
        return make_packer(self.seq_len, self.algorithm, self.lookahead, self.sequence_images)


PACKERS: dict[str, type[Packer]] = {
    "oldest_first": OldestFirst,
    "exact_fill": ExactFill,
    "best_fit_decreasing": BestFitDecreasing,
    "best_fit": BestFit,
    "first_fit": FirstFit,
    "next_fit": NextFit,
}
SHORTENING = ("exact_fill",)  # those that take tokens from an item where the sequence has no room for them


def make_packer(
    seq_len: int, algorithm: str = "oldest_first", lookahead: int = 256, max_images: int | None = None
) -> Packer:
    """A fresh packer.

    Args:
        seq_len: S, slots in a sequence.
        algorithm: one of `PACKERS`.
        lookahead: items that wait, for algorithms that choose among them.
        max_images: maximum number of items in a sequence; None: unlimited.

    Raises:
        ValueError: unknown algorithm, or a number below 1.
    """
    if algorithm not in PACKERS:
        raise ValueError(f"algorithm={algorithm!r} is not one of {', '.join(PACKERS)}")
    if seq_len < 1 or lookahead < 1:
        raise ValueError(f"seq_len={seq_len} and lookahead={lookahead} must be at least 1")
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images={max_images} must be at least 1")
    return PACKERS[algorithm](seq_len, lookahead, max_images)


def pack_lengths(
    lengths: Iterable[int],
    seq_len: int,
    algorithm: str = "oldest_first",
    lookahead: int = 256,
    max_images: int | None = None,
) -> list[list[int]]:
    """Pack items of the given lengths into sequences; returns the items' indices, by sequence.

    With `exact_fill`, the lengths in a sequence may sum to more than `seq_len`; use the packer itself to
    learn how much each item keeps.

    Raises:
        ValueError: a length that is not an integer in 1..seq_len, naming its place; or see `make_packer`.
    """
    packer: Packer[int] = make_packer(seq_len, algorithm, lookahead, max_images)
    sequences = []
    for place, length in enumerate(lengths):
        sequences += packer.add(place, _check_length(length, place, seq_len))
    return [[place for place, _ in contents] for contents in sequences + packer.flush()]


def _check_length(length: Any, place: int, seq_len: int) -> int:
    """The length as a plain int, from any integer type."""
    if not isinstance(length, int):  # True is an int
        with suppress(TypeError):
            length = index(length)
    if type(length) is int and 1 <= length <= seq_len:
        return length
    raise ValueError(f"lengths[{place}]: length {length!r} is not an integer in 1..{seq_len} (seq_len)")
