"""The shapes and dtypes that docstrings promise, with one meaning of each letter throughout a batch.

T slots of the batch, N images, D width; t slots in the model, which has cls and register tokens besides.
"""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Float32, Int32, Int64, UInt8, jaxtyped
from torch import Tensor

from packvit.data import pack_images
from packvit.models import Layout, PackedViT, Segments, ViTConfig, attention
from packvit.models.encoder.pool import Pool, PoolKind, segment_reduce, segment_softmax
from packvit.models.position.embedding import Places, PosEmbed, centres, rope_tables, rotate
from packvit.models.resample import Operator, pi_resize
from packvit.packing import PackedBatch
from packvit.train.tasks.classification import classification_loss
from packvit.train.tasks.distillation import distillation_loss

typed = jaxtyped(typechecker=beartype)
IMAGES = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 30), st.sampled_from([4, 7, 8, 12])), min_size=1, max_size=5
)


def make_batch(images: list[tuple[int, int, int]]) -> PackedBatch:
    pixels = [np.zeros((height, width, 3), np.uint8) for height, width, _ in images]
    return pack_images(pixels, patch_size=[p for *_, p in images], seq_len=70)


def make_layout(batch: PackedBatch, prefix: int) -> Layout:
    return Layout.build(batch.cu_seqlens, batch.image_index, batch.num_images, batch.max_len, prefix)


@typed
def check_batch(
    lengths_of_segments: Int64[Tensor, "segments"],
    image_index: Int32[Tensor, "T"],
    coords: Int32[Tensor, "T 2"],
    extents: Int32[Tensor, "T 2"],
    grids: Int32[Tensor, "N 2"],
    cells: Int32[Tensor, "N 2"],
    patch_sizes: Int32[Tensor, "N"],
    native_sizes: Int32[Tensor, "N 2"],
    cu_seqlens: Int32[Tensor, "segments+1"],
    lengths: Int64[Tensor, "N"],
) -> None:
    """Checks by being called."""


@typed
def check_patches(p: int, q: int, patches: UInt8[Tensor, "n {p*q*3}"], slots: Int64[Tensor, "n"]) -> None:
    """Checks by being called."""


@typed
def check_model(
    prefix: int,
    lengths_of_segments: Int64[Tensor, "segments"],
    image_index: Int32[Tensor, "T"],
    grids: Int32[Tensor, "N 2"],
    cu_seqlens: Int32[Tensor, "segments+1"],
    layout_cu_seqlens: Int32[Tensor, "segments+1"],
    segment: Int64[Tensor, "t"],
    owner: Int64[Tensor, "t"],
    is_own: Bool[Tensor, "t"],
    slot_of: Int64[Tensor, "T"] | None,
    owner_segment: Int64[Tensor, "N"],
    prefix_slots: Int64[Tensor, "N {prefix}"],
    placed: Int32[Tensor, "t 2"],
    tokens: Float32[Tensor, "T D"],
    features: Float32[Tensor, "N feature_dim"],
    logits: Float32[Tensor, "N classes"],
) -> None:
    """Checks by being called."""


@given(IMAGES)
@settings(deadline=None, max_examples=20)
def test_a_batch(images):
    batch = make_batch(images)
    check_batch(
        batch.cu_seqlens.diff().long(),
        batch.image_index,
        batch.coords,
        batch.extents,
        batch.grids,
        batch.cells,
        batch.patch_sizes,
        batch.native_sizes,
        batch.cu_seqlens,
        batch.image_lengths(),
    )
    assert batch.num_images == len(images)
    assert batch.patches.keys() == batch.slots.keys()
    for (p, q), patches in batch.patches.items():
        check_patches(p, q, patches, batch.slots[p, q])


MODELS: dict[str, dict[str, Any]] = {
    "map": {},
    "cls_mean": {"cls": True, "registers": 2, "pool": "cls_mean", "pos_embed": "grid_2d"},
    "rep": {"pool": "mean", "rep_size": 5, "pos_embed": "rope_2d", "mlp": "swiglu"},
    "headless": {"pool": "cls", "cls": True, "num_classes": 0, "pos_table": "fourier"},
}


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
@given(images=IMAGES)
@settings(deadline=None, max_examples=10)
def test_a_model(fields: dict[str, Any], images):
    sizes = {"width": 8, "depth": 1, "heads": 2, "num_classes": 3, "patch_buffer": 8}
    config = ViTConfig.from_dict(sizes | fields)
    model, batch = PackedViT(config), make_batch(images)
    layout, outputs = make_layout(batch, config.prefix), model.outputs(batch)
    check_model(
        config.prefix,
        batch.cu_seqlens.diff().long(),
        batch.image_index,
        batch.grids,
        batch.cu_seqlens,
        layout.cu_seqlens,
        layout.segment,
        layout.owner,
        layout.is_own,
        layout.slot_of,
        layout.owner_segment,
        layout.prefix_slots,
        layout.place(batch.coords),
        outputs.tokens,
        outputs.features,
        outputs.logits,
    )
    assert outputs.features.shape[1] == config.feature_dim
    assert outputs.logits.shape[1] == (config.num_classes or config.feature_dim)
    assert model(batch).shape == outputs.logits.shape
    maps = model.tokens(batch)
    assert [list(m.shape) for m in maps] == [[*grid, 8] for grid in batch.grids.tolist()]


@pytest.mark.parametrize("operator", get_args(Operator))
def test_pi_resize(operator: Operator):
    @typed
    def resize(weight: Float[Tensor, "P Q C D"], p: int, q: int) -> Float[Tensor, "{p} {q} C D"]:
        return pi_resize(weight, (p, q), operator)

    for p, q in ((6, 6), (3, 9), (1, 6)):
        resize(torch.randn(6, 6, 3, 2), p, q)
        resize(torch.randn(6, 6, 3, 2).double(), p, q)


@pytest.mark.parametrize(
    "fields", [{}, {"pos_combine": "stack"}, {"pos_table": "fourier"}, {"pos_embed": "grid_2d"}]
)
def test_positions(fields: dict[str, Any]):
    embed = PosEmbed(ViTConfig(width=8, heads=2, **fields), 8)

    @typed
    def embedding(
        coords: Int32[Tensor, "T 2"], extents: Int32[Tensor, "T 2"], sizes: Int32[Tensor, "T 2"]
    ) -> Float32[Tensor, "T 8"]:
        return embed(Places(coords, extents, sizes))

    @typed
    def rotated(
        x: Float32[Tensor, "T heads 8"], position: Float32[Tensor, "T 2"]
    ) -> Float32[Tensor, "T heads 8"]:
        return rotate(x, *tables(position))

    @typed
    def tables(position: Float32[Tensor, "T 2"]) -> tuple[Float32[Tensor, "T 4"], Float32[Tensor, "T 4"]]:
        return rope_tables(position, 8, 100.0)

    batch = make_batch([(20, 30, 4), (9, 9, 7)])
    places = Places(batch.coords, batch.extents, batch.grids[batch.image_index.long()])
    embedding(*places)
    position = centres(places, "fractional", (4, 4), torch.float32)
    rotated(torch.randn(batch.num_slots, 2, 8), position)


@pytest.mark.parametrize("kind", get_args(PoolKind))
def test_pooling_and_attention(kind: PoolKind):
    pool = Pool(ViTConfig(width=8, heads=2), kind)
    batch = make_batch([(20, 30, 4), (9, 9, 7), (4, 4, 4)])
    layout = make_layout(batch, 1)
    segments = Segments.build(layout.cu_seqlens, layout.max_len)

    @typed
    def pooled(
        x: Float32[Tensor, "t D"], images: Int32[Tensor, "N 2"], parts: int
    ) -> Float32[Tensor, "N {parts}*D"]:
        return pool(x, layout)

    @typed
    def reduced(
        x: Float32[Tensor, "t D"], segments: Int32[Tensor, "segments"]
    ) -> tuple[Float32[Tensor, "segments D"], Float32[Tensor, "t D"]]:
        return segment_reduce(x, layout), segment_softmax(x, layout)

    @typed
    def attended(
        q: Float32[Tensor, "t heads d"], k: Float32[Tensor, "t heads d"], v: Float32[Tensor, "t heads d"]
    ) -> Float32[Tensor, "t heads d"]:
        return attention(q, k, v, segments)

    x = torch.randn(layout.num_slots, 8)
    pooled(x, batch.grids, 2 if kind == "cls_mean" else 1)
    reduced(x, layout.cu_seqlens[1:])
    attended(*(torch.randn(layout.num_slots, 2, 4) for _ in "qkv"))


@typed
def losses(
    logits: Float[Tensor, "N classes"], teacher: Float[Tensor, "N classes"], labels: Int64[Tensor, "N"]
) -> list[Float32[Tensor, "N"]]:
    found = [classification_loss(logits, labels, kind) for kind in ("softmax", "sigmoid")]
    return [*found, distillation_loss(logits, teacher)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 3])
def test_losses(dtype: torch.dtype, count: int):
    losses(torch.randn(count, 5, dtype=dtype), torch.randn(count, 5), torch.zeros(count, dtype=torch.int64))
