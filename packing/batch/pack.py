"""Pack whole images of one batch."""

from collections.abc import Callable, Sequence

from packvit.packing.batch.image import Collated, PackedImage
from packvit.packing.batch.packed_batch import PackedBatch
from packvit.packing.packers.config import pack_lengths


def pack_in_order(
    images: Sequence[PackedImage],
    seq_len: int,
    collate: Callable[[Sequence[PackedImage]], dict[str, Collated]] | None = None,
) -> PackedBatch:
    """One batch whose image i is `images[i]`; sequences hold at least the longest image.

    Args:
        collate: as for `PackedBatch.build`.
    """
    lengths = [image.num_tokens for image in images]
    seq_len = max([seq_len, *lengths])
    sequences = pack_lengths(lengths, seq_len, lookahead=max(1, len(lengths)))
    numbers = [i for contents in sequences for i in contents]
    packed = [[images[i] for i in contents] for contents in sequences]
    return PackedBatch.build(packed, seq_len, numbers, min_sequences=1, collate=collate)
