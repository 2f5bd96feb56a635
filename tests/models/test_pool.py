"""Pooling per segment equals pooling one image after another."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from packvit.models import Layout, ViTConfig
from packvit.models.encoder.pool import (
    PIECE,
    AttentionPool,
    Pool,
    PoolKind,
    mean_pool,
    segment_reduce,
    segment_softmax,
)
from packvit.packing import PackedBatch

CONFIG = ViTConfig(width=16, heads=2, patch_buffer=4, cls=True, registers=1)
SHAPES = ((2, 3), (1, 1), (4, 2), (3, 3))


def make_layout(cut_image, prefix: int) -> Layout:
    images = [cut_image(np.zeros((r * 4, c * 4, 3), np.uint8), 4) for r, c in SHAPES]
    batch = PackedBatch.build([images[:2], [], images[2:3], images[3:]], 9)
    return Layout.build(batch.cu_seqlens, batch.image_index, batch.num_images, batch.max_len, prefix)


def own_tokens(x: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    return [x[(layout.owner == i) & layout.is_own] for i in range(layout.num_owners)]


def test_layout_puts_prefix_tokens_before_each_image(cut_image):
    layout = make_layout(cut_image, 2)
    assert layout.cu_seqlens.tolist() == [0, 8, 11, 13, 22, 32, 33, 44]
    assert layout.prefix_slots.tolist() == [[0, 1], [8, 9], [22, 23], [33, 34]]
    assert layout.is_own.sum() == sum(r * c for r, c in SHAPES)
    assert layout.owner[11:22].eq(-1).all()
    assert layout.slot_of is not None
    moved = layout.place(torch.arange(36))
    assert moved[layout.is_own].tolist() == [*range(7), *range(18, 26), *range(27, 36)]
    assert layout.max_len == 11


def layout_of(lengths: list[int], prefix: int = 0) -> Layout:
    """Owners of so many tokens one after another, without padding."""
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return Layout.build(cu, owner, len(lengths), max(lengths), prefix)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4 * PIECE), min_size=1, max_size=8), st.sampled_from(["sum", "max"]))
def test_reducing_in_pieces_is_reducing_each_segment(lengths: list[int], how: str):
    x = torch.randn(sum(lengths), 2, 3, dtype=torch.float64)
    expected = [part.sum(0) if how == "sum" else part.amax(0) for part in x.split(lengths)]
    got = segment_reduce(x, layout_of(lengths), how)
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-13, atol=1e-13)
    # To the last bit it does not matter what stands before and behind.
    alone = torch.cat([segment_reduce(t, layout_of([len(t)]), how) for t in x.float().split(lengths)])
    assert torch.equal(segment_reduce(x.float(), layout_of(lengths), how), alone)


def test_no_thread_walks_along_a_whole_segment(monkeypatch: pytest.MonkeyPatch):
    walks = []
    reduce = torch.segment_reduce

    def spy(x: torch.Tensor, how: str, *, offsets: torch.Tensor, **rest) -> torch.Tensor:
        walks.append(int(offsets.diff().max()))
        return reduce(x, how, offsets=offsets, **rest)

    monkeypatch.setattr(torch, "segment_reduce", spy)
    layout = layout_of([3, 1024, 40])
    AttentionPool(CONFIG)(torch.randn(1067, 16), layout)
    mean_pool(torch.randn(1067, 16), layout)
    assert walks
    assert max(walks) <= 32


@pytest.mark.parametrize("kind", ["map", "cls_mean"])
def test_pooling_compiles_whole_for_batches_of_all_sizes(cut_image, kind: PoolKind):
    """Fake tensors have no values to wait for."""
    pool = Pool(CONFIG, kind)
    torch.compiler.reset()
    compiled = torch.compile(pool, backend="aot_eager", fullgraph=True, dynamic=True)
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    for layout in (make_layout(cut_image, 2), layout_of([5, 70, 2], 2)):
        x = torch.randn(layout.num_slots, 16)
        torch.testing.assert_close(compiled(x, layout), pool(x, layout))
    assert stats["unique_graphs"] == before + 1
    torch.compiler.reset()


@pytest.mark.parametrize("prefix", [0, 2])
def test_mean_is_over_own_patch_tokens(cut_image, prefix: int):
    layout = make_layout(cut_image, prefix)
    x = torch.randn(layout.num_slots, 16, dtype=torch.float64)
    x[~layout.is_own] = torch.nan
    expected = torch.stack([t.mean(0) for t in own_tokens(x, layout)])
    torch.testing.assert_close(mean_pool(x, layout), expected)


@pytest.mark.parametrize("prefix", [0, 2])
def test_attention_pooling_is_that_of_each_image(cut_image, prefix: int):
    torch.manual_seed(0)
    pool = AttentionPool(CONFIG).double()
    torch.nn.init.normal_(pool.probe)
    layout = make_layout(cut_image, prefix)
    x = torch.randn(layout.num_slots, 16, dtype=torch.float64)
    expected = []
    for tokens in own_tokens(x, layout):
        q = pool.q(pool.probe).view(2, 1, 8)
        k, v = pool.kv(tokens).view(-1, 2, 2, 8).permute(1, 2, 0, 3)
        y = pool.proj(F.scaled_dot_product_attention(q, k, v).reshape(16))
        expected.append(y + pool.mlp(pool.norm(y)))
    torch.testing.assert_close(pool(x, layout), torch.stack(expected))


def test_softmax_gives_padding_nothing_and_survives_large_scores(cut_image):
    layout = make_layout(cut_image, 1)
    scores = torch.full((layout.num_slots, 2), -torch.inf)
    scores[layout.is_own] = 1e30 * torch.rand(int(layout.is_own.sum()), 2)
    weights = segment_softmax(scores, layout)
    assert weights.isfinite().all()
    assert not weights[~layout.is_own].any()
    sums = torch.stack([t.sum(0) for t in own_tokens(weights, layout)])
    torch.testing.assert_close(sums, torch.ones(4, 2))


@pytest.mark.parametrize("kind", get_args(PoolKind))
def test_gradients(cut_image, kind: PoolKind):
    torch.manual_seed(0)
    pool = Pool(replace(CONFIG, width=4, mlp_ratio=1.0), kind).double()
    layout = make_layout(cut_image, 2)
    x = torch.randn(layout.num_slots, 4, dtype=torch.float64, requires_grad=True)
    assert pool(x, layout).shape == (4, 8 if kind == "cls_mean" else 4)
    names = [name for name, _ in pool.named_parameters()]

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(pool, dict(zip(names, values, strict=True)), (x, layout))

    assert torch.autograd.gradcheck(run, (x, *pool.parameters()))
