"""What the exported graphs share: the model's own layers around dense attention, in plain tensor operations.

Tokens are [B, n, D]. A graph of packed tokens is one row of all tokens of all images, with a mask that keeps
attention to each image; a graph of one shape is a row for each image, and needs no mask. Everything that
treats each token alone is the model's own code; attention, pooling and layout are written separately and
dense, T x T, because they must be expressible in any format. Tests compare the two.
"""

import torch
from torch import Tensor

from packvit.models import PackedViT
from packvit.models.encoder.block import Block, after, before

Rope = tuple[Tensor, Tensor]


def plain_copy(model: PackedViT) -> PackedViT:
    """The model on the CPU in float32 and eval mode, without compiled parts; `model` is not changed."""
    copy = PackedViT(model.config)
    copy.load_state_dict({name: tensor.detach().float() for name, tensor in model.state_dict().items()})
    return copy.eval().requires_grad_(False)


def encode(model: PackedViT, x: Tensor, rope: Rope | None, mask: Tensor | None) -> Tensor:
    """The blocks and, if it is a norm of tokens, the last norm: [B, n, D] to [B, n, D].

    Args:
        rope: cosines and sines [B * n, head_dim / 2] of every token, or None.
        mask: bool [n, n], True where a token attends to another; None if all attend to all.
    """
    size = x.shape[:2]
    x = x.flatten(0, 1)  # [B * n, D]
    if model.pre_norm is not None:
        x = model.pre_norm(x)
    for block in model.blocks:
        assert isinstance(block, Block)
        q, k, v, side = before(block, x, rope)
        q, k, v = (tokens.unflatten(0, size).transpose(1, 2) for tokens in (q, k, v))  # [B, heads, n, ...]
        mixed = attend(q, k, v, mask).transpose(1, 2).flatten(0, 1)  # [B * n, heads, head_dim]
        x = after(block, x, mixed, side, None, None)
    if model.config.last_norm == "tokens":
        x = model.norm(x)
    return x.unflatten(0, size)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over [B, heads, n, head_dim], in float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, heads, n, n]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def pool(model: PackedViT, x: Tensor, prefix: Tensor, member: Tensor | None) -> Tensor:
    """Tokens to the input of the last norm or the head, [N, config.pooled_width].

    Args:
        x: [B, n, D], the patches' tokens.
        prefix: [N, prefix, D], tokens that the model put before them.
        member: bool [N, n], which tokens of the only row are each image's; None: each row is an image.
    """
    attention, kind = model.pool.attention, model.pool.kind
    if attention is not None:
        tokens = x.flatten(0, 1)
        k, v = attention.kv(tokens).unflatten(1, (2, attention.heads, -1)).unbind(1)  # [T, heads, head_dim]
        q = attention.q(attention.probe).unflatten(0, (attention.heads, -1))
        scores = (k * q).sum(-1) * q.shape[-1] ** -0.5  # [T, heads]
        scores, v = scores.unflatten(0, x.shape[:2]), v.unflatten(0, x.shape[:2])
        if member is not None:
            scores = scores.masked_fill(~member[:, :, None], -torch.inf)  # [N, n, heads]
        weights = scores.softmax(1).transpose(1, 2)[:, :, None]  # [N, heads, 1, n]
        y = attention.proj((weights @ v.transpose(1, 2)).flatten(1))
        return y + attention.mlp(attention.norm(y))
    if kind == "cls":
        return prefix[:, 0]
    if member is None:
        mean = x.mean(1)
    else:
        weights = member.to(x.dtype)
        mean = (weights @ x[0]) / weights.sum(1, keepdim=True)
    return mean if kind == "mean" else torch.cat([prefix[:, 0], mean], 1)


def finish(model: PackedViT, x: Tensor) -> tuple[Tensor, ...]:
    """Pooled tokens [N, config.pooled_width] to (logits, features), or (features,) if there is no head."""
    if model.config.last_norm == "pooled":
        x = model.norm(x)
    if model.rep is not None:
        x = model.rep(x).tanh()
    return (x,) if model.head is None else (model.head(x), x)
