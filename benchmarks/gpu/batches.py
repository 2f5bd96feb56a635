"""Packed batches of random images, as training makes them: any aspect ratio, many lengths, full sequences."""

from itertools import cycle

import numpy as np

from packvit.packing import PackedBatch, PackedImage, pack_lengths

MEAN, SPREAD, SHORTEST, LONGEST = 256, 100, 16, 1024  # tokens of an image: N(256, 100) within the bounds
ASPECT = 0.35  # of images: exp(N(0, 0.35))
CLASSES = 1000


def draw_grids(total: int, rng: np.random.Generator, longest: int = LONGEST) -> list[tuple[int, int]]:
    """(rows, cols) of images that together have about `total` tokens, each at most `longest`."""
    grids, used = [], 0
    scale = longest / LONGEST
    while used < total:
        wanted = np.clip(rng.normal(MEAN, SPREAD), SHORTEST, LONGEST) * scale
        aspect = np.exp(rng.normal(0, ASPECT))
        rows = max(1, round((wanted * aspect) ** 0.5))
        cols = max(1, min(round(wanted / rows), longest // rows))
        grids.append((min(rows, longest), cols))
        used += grids[-1][0] * cols
    return grids


def make_image(grid: tuple[int, int], p: int, rng: np.random.Generator, noise: bool) -> PackedImage:
    """An image of random pixels and a random label; without `noise` its pixels are zeros."""
    rows, cols = grid
    number, size = rows * cols, p * p * 3
    # Random bytes once, repeated: matrix products of zeros would draw less power and run faster.
    pixels = np.resize(rng.integers(0, 256, 65_537, np.uint8), (number, size)) if noise else None
    patches = np.zeros((number, size), np.uint8) if pixels is None else pixels
    coords = np.stack(np.divmod(np.arange(number), cols), 1).astype(np.int32)
    label = {"label": int(rng.integers(CLASSES))}
    return PackedImage({(p, p): patches}, coords, grid, (p, p), (rows * p, cols * p), targets=label)


def make_batch(
    rows: int, seq_len: int, patch_sizes: tuple[int, ...] = (16,), seed: int = 0, noise: bool = True
) -> PackedBatch:
    """`rows` sequences of `seq_len` slots, all but full, of images whose patch sizes take turns."""
    rng = np.random.default_rng(seed)
    # More than needed: the sequences that are closed last are not full.
    grids = draw_grids(int(rows * seq_len * 1.2) + 8 * seq_len, rng, min(LONGEST, seq_len))
    sequences = pack_lengths([r * c for r, c in grids], seq_len)[:rows]
    turns = cycle(patch_sizes)  # so that no size is missing where there are enough images
    images = [[make_image(grids[i], next(turns), rng, noise) for i in row] for row in sequences]
    return PackedBatch.build(images, seq_len)


def segments_of(batch: PackedBatch) -> np.ndarray:
    """int64 [segments], the lengths of all segments, padding's too, of a batch in host memory."""
    return np.diff(batch.cu_seqlens.numpy()).astype(np.int64)
