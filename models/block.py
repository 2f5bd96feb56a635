"""The Transformer block over flat tokens [T, D], with the variations that the literature has settled on.

A block is two functions of each token alone, before and after attention, which is the one place where tokens
meet and the batch's segments count. So the two can be compiled once, for all blocks and all batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packvit.models.attention import Segments, attention
from packvit.models.config import ViTConfig
from packvit.models.pos_embed import rotate


@dataclass(frozen=True)
class Context:
    """What the blocks know of a batch, besides its tokens.

    Args:
        segments: who sees whom.
        rope: cosines and sines [T, head_dim / 2], or None.
        image_index: int64 [T], image of each slot, -1 = padding.
        num_images: N.
    """

    segments: Segments
    rope: tuple[Tensor, Tensor] | None
    image_index: Tensor
    num_images: int


def linear(width_in: int, width_out: int, bias: bool, parts: int = 1) -> nn.Linear:
    """Xavier-uniform weights, as big_vision, with the bounds of each of `parts` fused projections."""
    layer = nn.Linear(width_in, width_out, bias=bias)
    bound = (6 / (width_in + width_out / parts)) ** 0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class RMSNorm(nn.RMSNorm):
    """RMSNorm in its weights' dtype, answering in the input's: half-precision input must not lose digits."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def make_norm(config: ViTConfig, width: int) -> nn.Module:
    """The norm of the blocks, over the last dimension of size `width`."""
    if config.norm == "rms":
        return RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.biases)


class Attention(nn.Module):
    """The layers around attention; queries and keys normalised per head if configured (ViT-22B 2.1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = linear(config.width, 3 * config.width, config.biases, parts=3)
        self.proj = linear(config.width, config.width, config.biases)
        self.q_norm, self.k_norm = _qk_norm(config), _qk_norm(config)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """[T, D] -> queries, keys and values, each [T, heads, head_dim]."""
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        # Norms may answer in float32 under autocast; kernels want one dtype.
        return q.to(v.dtype), k.to(v.dtype), v


def _qk_norm(config: ViTConfig) -> nn.Module:
    if config.qk_norm == "rms":
        return RMSNorm(config.head_dim, eps=config.norm_eps)
    if config.qk_norm == "layer":
        return nn.LayerNorm(config.head_dim, eps=config.norm_eps, bias=config.biases)
    return nn.Identity()


class Mlp(nn.Module):
    """Two layers with a kind of GELU, or SwiGLU (arXiv 2002.05202), whose first half of fc1 is the gate."""

    def __init__(self, width: int, hidden: int, kind: str, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        parts = 2 if kind == "swiglu" else 1
        self.fc1 = linear(width, parts * hidden, bias, parts)
        self.fc2 = linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        x = self.fc1(x)
        if self.kind == "swiglu":
            gate, x = x.chunk(2, -1)
            return self.fc2(F.silu(gate) * x)
        if self.kind == "quick_gelu":
            return self.fc2(x * torch.sigmoid(1.702 * x))
        return self.fc2(F.gelu(x, approximate="tanh" if self.kind == "gelu_tanh" else "none"))


class Parts(NamedTuple):
    """The token-wise functions `before` and `after`, as they are or compiled."""

    before: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    after: Callable[..., Tensor]


class Block(nn.Module):
    """Pre-norm attention and MLP, one after the other or side by side.

    Args:
        config: the model's.
        drop_path: chance that an image skips a residual branch of this block in training.
    """

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.parts = EAGER
        self.drop_path = drop_path
        self.norm1 = make_norm(config, config.width)
        self.attn = Attention(config)
        # Side by side, both branches read one norm (ViT-22B 2.1).
        self.norm2 = None if config.parallel else make_norm(config, config.width)
        self.mlp = Mlp(config.width, config.hidden, config.mlp, config.biases)
        self.scale1 = self.scale2 = None
        if config.layer_scale:
            self.scale1 = nn.Parameter(torch.full((config.width,), float(config.layer_scale)))
            self.scale2 = nn.Parameter(torch.full((config.width,), float(config.layer_scale)))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[T, D] -> [T, D]."""
        y, q, k, v = self.parts.before(self, x, context.rope)
        mixed = attention(q, k, v, context.segments)  # [T, heads, head_dim]
        keep1 = self.draw_keep(x, context)
        keep2 = None if self.norm2 is None else self.draw_keep(x, context)
        return self.parts.after(self, x, y, mixed, keep1, keep2)

    def draw_keep(self, x: Tensor, context: Context) -> Tensor | None:
        """Factors [T, 1] that zero a branch for some images, all tokens of an image at once, and leave its
        mean (arXiv 1603.09382); None where none is zeroed."""
        if not self.training or not self.drop_path:
            return None
        kept = torch.rand(context.num_images + 1, device=x.device) >= self.drop_path
        factor = kept.to(x.dtype) / (1 - self.drop_path)
        return factor[context.image_index][:, None]  # padding, -1, reads the entry beyond the images


def before(
    block: Block, x: Tensor, rope: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens [T, D] to their norm [T, D], and queries, keys and values [T, heads, head_dim]."""
    y = block.norm1(x)
    return y, *block.attn.project(y, rope)


def after(
    block: Block, x: Tensor, y: Tensor, mixed: Tensor, keep1: Tensor | None, keep2: Tensor | None
) -> Tensor:
    """Tokens and their norm [T, D], and what attention gave [T, heads, head_dim], to the block's output."""
    branch = _times(block.attn.proj(mixed.flatten(1)), block.scale1)
    if block.norm2 is None:
        branch = branch + _times(block.mlp(y), block.scale2)
        return x + _times(branch, keep1)
    x = x + _times(branch, keep1)
    branch = _times(block.mlp(block.norm2(x)), block.scale2)
    return x + _times(branch, keep2)


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


EAGER = Parts(before, after)
