"""What users of a loader without packing would write: draw a side, cut a picture, pack next-fit in numpy."""

from collections.abc import Iterable, Iterator
from random import Random
from typing import NamedTuple

import numpy as np

LOW, HIGH, PATCH = 64, 256, 16
SEQ_LEN, SEQUENCES = 1024, 4


class Packed(NamedTuple):
    """A batch of B sequences of S slots.

    patches: uint8 [B, S, PATCH * PATCH * 3], zeros in padding.
    image_index: int32 [B, S], the image of each slot, -1 = padding.
    coords: int32 [B, S, 2], (row, col) of each patch in its picture.
    labels: int64 [N].
    """

    patches: np.ndarray
    image_index: np.ndarray
    coords: np.ndarray
    labels: np.ndarray


def draw_size(rng: Random, height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture that is shown at a side drawn from U(LOW, HIGH), in whole patches."""
    scale = rng.uniform(LOW, HIGH) / (height * width) ** 0.5 / PATCH
    return max(1, round(height * scale)) * PATCH, max(1, round(width * scale)) * PATCH


def pack(pictures: Iterable[tuple[np.ndarray, int]]) -> Iterator[Packed]:
    """Batches of pictures, uint8 [height, width, 3] in whole patches, with labels; the last is left out.

    Every patch is copied once, from its picture to its slot.
    """
    batch, labels, row, used = _empty(), [], 0, 0
    for pixels, label in pictures:
        rows, cols = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
        number = rows * cols
        if used + number > SEQ_LEN:
            row, used = row + 1, 0
            if row == SEQUENCES:
                yield batch._replace(labels=np.array(labels))
                batch, labels, row = _empty(), [], 0
        slots = slice(used, used + number)
        places = batch.patches[row, slots].reshape(rows, cols, PATCH, PATCH, 3)
        places[...] = pixels.reshape(rows, PATCH, cols, PATCH, 3).swapaxes(1, 2)
        batch.image_index[row, slots] = len(labels)
        batch.coords[row, slots] = np.indices((rows, cols)).reshape(2, -1).T
        labels.append(label)
        used += number


def _empty() -> Packed:
    shape = (SEQUENCES, SEQ_LEN)
    return Packed(
        np.zeros((*shape, PATCH * PATCH * 3), np.uint8),
        np.full(shape, -1, np.int32),
        np.zeros((*shape, 2), np.int32),
        np.zeros(0, np.int64),
    )
