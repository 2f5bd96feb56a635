"""PackedBatch.build: the layout that everybody else relies on."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import BatchStats, PackedBatch, PackedImage


def image(tokens: int, p: int, label: int | None = 0, fill: int = 0) -> PackedImage:
    coords = np.stack([np.zeros(tokens), np.arange(tokens)], 1).astype(np.int32)
    patches = np.full((tokens, p * p * 3), fill, np.uint8)
    return PackedImage(patches, coords, (1, tokens), p, (p, p * tokens), label, f"image-{fill}")


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([2, 3, 5])), max_size=4), max_size=4),
    st.integers(16, 20),
)
def test_layout(rows, seq_len):
    sequences, number = [], 0
    for row in rows:
        sequence = []
        for tokens, p in row:
            sequence.append(image(tokens, p, fill=number))
            number += 1
        sequences.append(sequence)
    batch = PackedBatch.build(sequences, seq_len)
    flat = [i for sequence in sequences for i in sequence]

    assert batch.num_slots == seq_len * len(rows)
    assert batch.num_images == number
    assert batch.patch_sizes.tolist() == [i.patch_size for i in flat]
    assert batch.image_lengths().tolist() == [len(i.patches) for i in flat]
    for p, slots in batch.slots.items():
        # The patch in a slot is one of the image that owns the slot.
        assert (batch.patches[p][:, 0] == batch.image_index[slots]).all()
        assert (batch.patch_sizes[batch.image_index[slots].long()] == p).all()
    assert sum(len(s) for s in batch.slots.values()) == int((batch.image_index >= 0).sum())
    offsets = batch.cu_seqlens.tolist()
    assert offsets[0] == 0
    assert offsets[-1] == batch.num_slots
    for start, end in pairwise(offsets):
        assert end > start
        assert start // seq_len == (end - 1) // seq_len
        assert len(set(batch.image_index[start:end].tolist())) == 1


def test_stats_count_padding_and_attention():
    batch = PackedBatch.build([[image(3, 4), image(2, 8)], [image(4, 4)]], 6)
    stats = batch.stats()
    assert stats == BatchStats(images=3, tokens=9, slots=12, sequences=2, squared_lengths=29)
    assert stats.padding_fraction == 0.25
    assert stats.images_per_sequence == 1.5
    assert (stats + stats).tokens == 18


def test_a_long_image_takes_several_rows_and_empty_ones_are_added():
    batch = PackedBatch.build([[image(3, 4)], [image(12, 4)], [image(2, 4), image(3, 8)]], 5, min_rows=6)
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 17, 20, 22, 25, 30]
    assert batch.image_lengths().tolist() == [3, 12, 2, 3]
    assert batch.stats().sequences == 6
    assert batch.max_len == 15
    with pytest.raises(ValueError, match="'image-9' does not fit"):
        PackedBatch.build([[image(3, 4), image(12, 4, fill=9)]], 5)


def test_types():
    batch = PackedBatch.build([[image(3, 4), image(2, 8)]], 8)
    assert {t.dtype for t in batch.patches.values()} == {torch.uint8}
    assert {t.dtype for t in batch.slots.values()} == {torch.int64}
    for tensor in (batch.image_index, batch.coords, batch.grids, batch.patch_sizes, batch.cu_seqlens):
        assert tensor.dtype == torch.int32
    assert batch.labels is not None
    assert batch.labels.dtype == torch.int64
    assert batch.to("cpu").keys == ["image-0", "image-0"]


def test_unlabelled_images_give_no_labels():
    assert PackedBatch.build([[image(1, 4, None)]], 2).labels is None
    assert PackedBatch.build([[]], 2).num_images == 0


def test_an_overfull_sequence_names_the_image():
    with pytest.raises(ValueError, match="'image-7' does not fit"):
        PackedBatch.build([[image(3, 4), image(3, 4, fill=7)]], 5)
