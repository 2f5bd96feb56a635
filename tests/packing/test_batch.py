"""PackedBatch.build: the layout that everybody else relies on."""

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packvit.packing import BatchStats, PackedBatch, PackedImage


def image(tokens: int, p: int, label: int | None = 0, fill: int = 0) -> PackedImage:
    coords = np.stack([np.zeros(tokens), np.arange(tokens)], 1).astype(np.int32)
    patches = {(p, p): np.full((tokens, p * p * 3), fill, np.uint8)}
    targets = {"label": label}
    return PackedImage(
        patches, coords, (1, tokens), (p, p), (p, p * tokens), f"image-{fill}", targets=targets
    )


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
    assert batch.patch_sizes.tolist() == [i.cell[0] for i in flat]
    assert batch.cells.tolist() == [list(i.cell) for i in flat]
    assert batch.image_lengths().tolist() == [i.num_tokens for i in flat]
    for shape, slots in batch.slots.items():
        # The patch in a slot is one of the image that owns the slot.
        assert (batch.patches[shape][:, 0] == batch.image_index[slots]).all()
        assert (batch.cells[batch.image_index[slots].long()] == torch.tensor(shape)).all()
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
    batch = PackedBatch.build([[image(3, 4)], [image(12, 4)], [image(2, 4), image(3, 8)]], 5, min_sequences=6)
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 17, 20, 22, 25, 30]
    assert batch.image_lengths().tolist() == [3, 12, 2, 3]
    assert batch.stats().sequences == 6
    assert batch.max_len == 12
    with pytest.raises(ValueError, match="'image-9' does not fit"):
        PackedBatch.build([[image(3, 4), image(12, 4, fill=9)]], 5)


def test_an_image_may_have_patches_of_several_shapes_that_cover_several_cells():
    fine, coarse = image(3, 4, fill=1), image(2, 8, fill=2)
    extents = np.array([[1, 1]] * 3 + [[2, 2]] * 2, np.int32)
    coords = np.concatenate([fine.coords, coarse.coords * 2 + (0, 3)]).astype(np.int32)
    mixed = PackedImage({**fine.patches, **coarse.patches}, coords, (2, 7), (4, 4), (8, 28), "mixed", extents)
    batch = PackedBatch.build([[image(2, 8)], [image(1, 4), mixed]], 8)
    assert {shape: slots.tolist() for shape, slots in batch.slots.items()} == {
        (4, 4): [8, 9, 10, 11],
        (8, 8): [0, 1, 12, 13],
    }
    assert batch.patches[4, 4][:, 0].tolist() == [0, 1, 1, 1]
    assert batch.patches[8, 8][:, 0].tolist() == [0, 0, 2, 2]
    assert batch.image_index.tolist() == [0] * 2 + [-1] * 6 + [1] + [2] * 5 + [-1] * 2
    assert np.array_equal(batch.coords[9:14], coords)
    assert np.array_equal(batch.extents[9:14], extents)
    assert batch.extents[:9].eq(1).all()
    assert batch.extents[14:].eq(1).all()
    assert batch.patch_sizes.tolist() == [8, 4, 4]
    assert batch.image_lengths().tolist() == [2, 1, 5]


def test_clips_have_three_axes():
    coords = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1]], np.int32)
    patches = {(2, 4, 4): np.zeros((3, 2 * 4 * 4 * 3), np.uint8)}
    batch = PackedBatch.build([[PackedImage(patches, coords, (2, 1, 2), (2, 4, 4), (4, 8))]], 4)
    assert batch.coords.tolist() == [*coords.tolist(), [0, 0, 0]]
    assert batch.extents.shape == (4, 3)
    assert batch.grids.tolist() == [[2, 1, 2]]
    assert batch.cells.tolist() == [[2, 4, 4]]
    assert batch.patch_sizes.tolist() == [4]
    assert {shape: slots.tolist() for shape, slots in batch.slots.items()} == {(2, 4, 4): [0, 1, 2]}


def test_types():
    batch = PackedBatch.build([[image(3, 4), image(2, 8)]], 8)
    assert {t.dtype for t in batch.patches.values()} == {torch.uint8}
    assert {t.dtype for t in batch.slots.values()} == {torch.int64}
    for tensor in (batch.image_index, batch.coords, batch.extents, batch.grids, batch.cells):
        assert tensor.dtype == torch.int32
    for tensor in (batch.patch_sizes, batch.native_sizes, batch.cu_seqlens):
        assert tensor.dtype == torch.int32
    assert batch.labels is not None
    assert batch.labels.dtype == torch.int64
    assert batch.image_lengths().dtype == torch.int64
    assert batch.to("cpu").keys == ["image-0", "image-0"]


def test_unlabelled_images_give_no_labels():
    assert PackedBatch.build([[image(1, 4, None)]], 2).labels is None
    assert PackedBatch.build([[]], 2).num_images == 0


def test_an_overfull_sequence_names_the_image():
    with pytest.raises(ValueError, match="'image-7' does not fit"):
        PackedBatch.build([[image(3, 4), image(3, 4, fill=7)]], 5)


def rectangles(batch: PackedBatch) -> list[tuple[int, int, int, str]]:
    """(x, y, width, title) of what a notebook shows; the title of padding is empty."""
    svg = re.search(r"<svg.*</svg>", batch._repr_html_())
    assert svg is not None
    found = ElementTree.fromstring(svg[0]).findall("{*}rect")
    places = [[int(rect.get(name, "0")) for name in ("x", "y", "width")] for rect in found]
    return [(x, y, w, rect.findtext("{*}title", "")) for (x, y, w), rect in zip(places, found, strict=True)]


def test_a_batch_shows_itself_in_a_line_and_as_a_picture():
    rows = [[image(3, 4), image(2, 8, fill=1)], [image(1, 4, fill=2)]]
    batch = PackedBatch.build(rows, 6)
    line = "3 images, 6 tokens in 2 sequences of 6 slots (50.0% padding), patch sizes 4, 8, targets label"
    assert repr(batch) == f"PackedBatch({line}, uint8 on cpu)"
    assert f"<div>PackedBatch: {line}" in batch._repr_html_()
    bars = rectangles(batch)
    assert [(x, width) for x, _, width, _ in bars] == [(0, 6), (0, 3), (3, 2), (0, 6), (0, 1)]
    assert [title for *_, title in bars] == [
        "",
        "image 0, image-0: 1x3 patches of 4 pixels, 3 tokens",
        "image 1, image-1: 1x2 patches of 8 pixels, 2 tokens",
        "",
        "image 2, image-2: 1x1 patches of 4 pixels, 1 token",
    ]
    assert len({y for _, y, _, _ in bars}) == 2
    assert repr(PackedBatch.build([], 6)).startswith("PackedBatch(0 images, 0 tokens in 0 sequences")


def test_a_picture_of_a_batch_is_safe_and_small():
    one = replace(image(1, 4), key="<script>&\"'")
    assert "<script>" not in PackedBatch.build([[one]], 1)._repr_html_()
    many = PackedBatch.build([[image(1, 1, fill=i % 256)] * 8 for i in range(400)], 8)
    assert "The first 16 of 400 sequences." in many._repr_html_()
    assert len(rectangles(many)) == 16 * 9
