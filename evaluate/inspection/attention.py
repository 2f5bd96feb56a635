"""Attention probabilities, which the model's fast kernels never store, computed directly.

These functions are the slow twins of `attention` in models/attention and of `AttentionPool`: quadratic in all
tokens of a batch, in float32 or better, and meant for one image at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from packvit.models import Layout, PackedViT
from packvit.models.encoder.block import Block, Context
from packvit.models.encoder.pool import AttentionPool
from packvit.packing import PackedBatch


def attention_probabilities(block: Block, x: Tensor, context: Context) -> Tensor:
    """How much each token attends to each other: [heads, T, T], rows sum to 1.

    Args:
        x: [T, D], the input of the block.
        context: the context that the block was called with.
    """
    q, k, _, _ = block.before(block, x, context.rope)  # [T, heads, head_dim]
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("qhc,khc->hqk", q.to(dtype), k.to(dtype)) * q.shape[-1] ** -0.5
    segment = context.layout.segment
    return scores.masked_fill(segment[:, None] != segment[None], -torch.inf).softmax(-1)


def probe_probabilities(pool: AttentionPool, x: Tensor, layout: Layout) -> Tensor:
    """How much the learned query of each image attends to each token: [heads, N, T], rows sum to 1.

    Args:
        x: [T, D], the input of the pooling.
        layout: the layout of its tokens.
    """
    q = pool.q(pool.probe).unflatten(0, (pool.heads, -1))  # [heads, head_dim]
    k = pool.kv(x).unflatten(1, (2, pool.heads, -1))[:, 0]  # [T, heads, head_dim]
    dtype = torch.promote_types(k.dtype, torch.float32)
    scores = torch.einsum("hc,khc->hk", q.to(dtype), k.to(dtype)) * q.shape[-1] ** -0.5
    owner = torch.arange(layout.num_owners, device=x.device)
    seen = layout.is_own & (layout.owner == owner[:, None])  # [N, T]
    return scores[:, None].masked_fill(~seen, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class Look:
    """Attention and tokens of a model for one image.

    Args:
        attention: float32 [rows, cols], the share of attention that each patch gets, averaged over heads;
            `ATTENTION` says whose attention it is.
        tokens: float32 [rows, cols, D], tokens of the last layer.
    """

    attention: Tensor
    tokens: Tensor

    def similarity(self, to: Tensor) -> Tensor:
        """Cosine of the tokens with the vector `to`: [rows, cols]."""
        return torch.cosine_similarity(self.tokens, to[None, None], dim=-1)

    def centre_token(self) -> Tensor:
        """The token of the patch in which the image's centre lies: [D]."""
        rows, cols, _ = self.tokens.shape
        return self.tokens[rows // 2, cols // 2]


# What a picture of attention shows, by the kind of pooling.
ATTENTION = {
    "map": "attention of the pooling's query",
    "cls": "attention of the cls token in the last block",
    "cls_mean": "attention of the cls token in the last block",
    "mean": "mean attention that a patch receives in the last block",
}


def look_at(model: PackedViT, batch: PackedBatch) -> Look:
    """Attention and tokens of the one whole image of a batch.

    Args:
        model: in eval mode, its blocks not compiled.
        batch: one image without padding, on the model's device.
    """
    assert batch.num_images == 1
    inputs: list[tuple] = []  # of the module whose attention is shown
    pool, last = model.pool.attention, model.blocks[-1]
    assert isinstance(last, Block)
    handle = (pool or last).register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    try:
        with torch.inference_mode():
            tokens = model.outputs(batch).tokens  # [rows * cols, D]
            x, known = inputs[0]
            if pool is not None:
                layout: Layout = known
                shares = probe_probabilities(pool, x, layout)[:, 0].mean(0)
            else:
                layout = known.layout
                asking = layout.is_own if model.config.pool == "mean" else layout.prefix_slots[0, :1]
                shares = attention_probabilities(last, x, known).mean(0)[asking].mean(0)
    finally:
        handle.remove()
    rows, cols = batch.grids[0].tolist()
    shares = shares[layout.is_own].float().cpu().view(rows, cols)
    return Look(shares, tokens.float().cpu().view(rows, cols, -1))
