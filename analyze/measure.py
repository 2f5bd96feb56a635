"""Pack a list of token counts and measure the sequences.

Counts are streamed through a packer in blocks, so memory grows only by 16 bytes per sequence.
"""

import time
from dataclasses import dataclass
from itertools import chain

import numpy as np

from packvit.analyze.cost import Work
from packvit.packing import make_packer
from packvit.packing.packers.packer import Contents

BLOCK = 16_384  # items between two measurements


@dataclass(frozen=True)
class Packed:
    """The result of packing a list of views.

    Args:
        seq_len, algorithm, lookahead: how it was packed.
        images, sequences, tokens: counts; tokens are those that the sequences hold.
        squares: sum of tokens² over images.
        padding_squares: sum of padding² over sequences: the padding of a row is a segment, too.
        images_per_sequence, images_p1, images_p99: mean and percentiles.
        dropped: tokens that exact fill dropped.
        fill_drop, fill_worst: share of an image's tokens that exact fill dropped, mean and largest.
        fill_images: share of the images that lost any tokens to it.
        microseconds: CPU time per item in the packer.
    """

    seq_len: int
    algorithm: str
    lookahead: int
    images: int
    sequences: int
    tokens: int
    squares: int
    padding_squares: int
    images_per_sequence: float
    images_p1: float
    images_p99: float
    dropped: int
    fill_drop: float
    fill_worst: float
    fill_images: float
    microseconds: float

    @property
    def padding_fraction(self) -> float:
        """Empty slots / all slots."""
        return 1 - self.tokens / (self.sequences * self.seq_len)

    @property
    def waste(self) -> float:
        """Empty slots and tokens dropped to fill slots, over all slots: 0 is perfect."""
        slots = self.sequences * self.seq_len
        return (slots - self.tokens + self.dropped) / slots

    @property
    def work(self) -> Work:
        """Each image attends to itself, as does a row's padding."""
        return Work(self.sequences * self.seq_len, self.squares + self.padding_squares)

    @property
    def dense_work(self) -> Work:
        """Every slot attends to its whole sequence, under a mask."""
        return Work(self.sequences * self.seq_len, self.sequences * self.seq_len**2)


def measure(lengths: np.ndarray, seq_len: int, algorithm: str, lookahead: int) -> Packed:
    """Pack int [N] token counts, N >= 1, in their order and measure the sequences.

    Raises:
        ValueError: a length outside 1..seq_len, an unknown algorithm or a lookahead below 1.
    """
    packer = make_packer(seq_len, algorithm, lookahead)
    if lengths.min() < 1 or lengths.max() > seq_len:
        raise ValueError(
            f"lengths from {lengths.min()} to {lengths.max()} are not all in 1..{seq_len} (seq_len)"
        )
    seconds = fill_drop = fill_worst = 0.0
    cut_images = 0
    tokens = squares = 0
    counts: list[np.ndarray] = []
    used: list[np.ndarray] = []
    for start in range(0, len(lengths) + 1, BLOCK):
        block = lengths[start : start + BLOCK].tolist()
        sequences: list[Contents[int]] = []
        began = time.process_time()
        for item, length in enumerate(block, start):
            sequences += packer.add(item, length)
        if len(block) < BLOCK:
            sequences += packer.flush()
        seconds += time.process_time() - began
        if not sequences:
            continue
        counts.append(np.array([len(sequence) for sequence in sequences]))
        pairs = np.array(list(chain.from_iterable(sequences)), np.int64)
        offsets = np.append(0, counts[-1].cumsum()[:-1])
        items, kept = pairs[:, 0], pairs[:, 1]
        used.append(np.add.reduceat(kept, offsets))
        tokens += int(kept.sum())
        squares += int((kept**2).sum())
        lost = 1 - kept / lengths[items]
        fill_drop += float(lost.sum())
        fill_worst = max(fill_worst, float(lost.max()))
        cut_images += np.count_nonzero(lost)
    per_sequence, filled = np.concatenate(counts), np.concatenate(used)
    return Packed(
        seq_len=seq_len,
        algorithm=algorithm,
        lookahead=lookahead,
        images=int(per_sequence.sum()),
        sequences=len(per_sequence),
        tokens=tokens,
        squares=squares,
        padding_squares=int(((seq_len - filled) ** 2).sum()),
        images_per_sequence=float(per_sequence.mean()),
        images_p1=float(np.percentile(per_sequence, 1)),
        images_p99=float(np.percentile(per_sequence, 99)),
        dropped=int(lengths.sum(dtype=np.int64)) - tokens,
        fill_drop=fill_drop / len(lengths),
        fill_worst=fill_worst,
        fill_images=cut_images / len(lengths),
        microseconds=1e6 * seconds / len(lengths),
    )
