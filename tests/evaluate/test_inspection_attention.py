"""What is taken from inside a model is what the model computes, and taking it changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from packvit.evaluate.inspection.attention import attention_probabilities, look_at, probe_probabilities
from packvit.evaluate.inspection.taps import places, tapped
from packvit.models import PackedViT, ViTConfig
from packvit.models.encoder.block import Block
from packvit.packing import PackedBatch

BASE = ViTConfig(width=16, depth=2, heads=2, num_classes=5, patch_buffer=8, pos_grid=(3, 3))
CONFIGS = {
    "map": BASE,
    "map_registers": replace(BASE, registers=2, qk_norm="layer", layer_scale=0.3),
    "cls": replace(BASE, pool="cls", cls=True, registers=1, pre_norm=True),
    "cls_mean": replace(BASE, pool="cls_mean", cls=True, last_norm="pooled"),
    "mean_rope": replace(BASE, pool="mean", pos_embed="rope_2d", biases=False, mlp="swiglu"),
    "parallel": replace(BASE, pool="mean", parallel=True, norm="rms"),
}


def make_model(config: ViTConfig) -> PackedViT:
    torch.manual_seed(0)
    model = PackedViT(config, backend="sdpa").double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=CONFIGS, name="model")
def _model(request) -> PackedViT:
    return make_model(CONFIGS[request.param])


@pytest.fixture(name="batch")
def _batch(cut_image) -> PackedBatch:
    """Three images, two patch sizes, padding."""
    rng = np.random.default_rng(0)
    images = [
        cut_image(rng.integers(0, 256, (rows * p, cols * p, 3), dtype=np.uint8), p)
        for rows, cols, p in ((2, 3, 8), (4, 2, 6), (1, 1, 8))
    ]
    return PackedBatch.build([images[:2], images[2:]], 16)


@torch.inference_mode()
def streams(model: PackedViT, batch: PackedBatch) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with tapped(model, lambda name, x, _: found.update({name: x.clone()})):
        model(batch)
    return found


@torch.inference_mode()
def test_hooks_change_nothing_and_go(model, batch):
    before = model(batch)
    with tapped(model, lambda *_: None):
        during = model(batch)
    assert torch.equal(before, during)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.inference_mode()
def test_streams_are_those_between_the_sublayers(model, batch):
    found = streams(model, batch)
    assert list(found) == places(model)
    assert len(found) == 1 + model.config.depth * (1 if model.config.parallel else 2)
    last = (
        model.norm(found[places(model)[-1]])
        if model.config.last_norm == "tokens"
        else found[places(model)[-1]]
    )
    layout = model._layout(batch)
    own = batch.image_index >= 0
    torch.testing.assert_close(last[layout.is_own], model.outputs(batch).tokens[own])
    if not model.config.parallel:
        block = model.blocks[1]
        x = found["2 attn"]
        branch = block.mlp(block.norm2(x)) * (1 if block.scale2 is None else block.scale2)
        torch.testing.assert_close(x + branch, found["2 mlp"])


@torch.inference_mode()
def test_attention_probabilities_reproduce_the_block(model, batch):
    calls = []
    block = model.blocks[1]
    assert isinstance(block, Block)
    handle = block.register_forward_hook(lambda _, arguments, out: calls.append((*arguments, out)))
    model(batch)
    handle.remove()
    x, context, out = calls[0]
    shares = attention_probabilities(block, x, context)
    _, _, v, side = block.before(block, x, context.rope)
    plain = block.after(block, x, torch.einsum("hqk,khc->qhc", shares, v), side, None, None)
    owned = context.layout.owner >= 0
    torch.testing.assert_close(plain[owned], out[owned])
    owner = context.layout.owner
    assert not shares[:, (owner[:, None] != owner[None])].any()


@pytest.mark.parametrize("name", ["map", "map_registers"])
@torch.inference_mode()
def test_probe_probabilities_reproduce_the_pooling(name, batch):
    model = make_model(CONFIGS[name])
    pool = model.pool.attention
    assert pool is not None
    calls = []
    handle = pool.register_forward_hook(lambda _, arguments, out: calls.append((*arguments, out)))
    model(batch)
    handle.remove()
    x, layout, out = calls[0]
    shares = probe_probabilities(pool, x, layout)  # [heads, N, T]
    v = pool.kv(x).unflatten(1, (2, pool.heads, -1))[:, 1]
    y = pool.proj(torch.einsum("hnt,thc->nhc", shares, v).flatten(1))
    torch.testing.assert_close(y + pool.mlp(pool.norm(y)), out)


def test_a_look_has_a_share_for_every_patch(model, cut_image):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    batch = PackedBatch.build([[cut_image(pixels, 8)]], 15)
    look = look_at(model, batch)
    assert look.attention.shape == (3, 5)
    assert look.attention.min() >= 0
    # Only the query of `map` and models without prefix tokens spend all of it on patches.
    total = float(look.attention.sum())
    assert total == pytest.approx(1, abs=1e-5) if model.config.pool in ("map", "mean") else 0 < total < 1
    torch.testing.assert_close(look.tokens.double(), model.tokens(batch)[0].detach(), atol=1e-5, rtol=1e-5)
    similarity = look.similarity(look.centre_token())
    assert float(similarity[1, 2]) == pytest.approx(1)
    assert similarity.abs().max() <= 1 + 1e-6
