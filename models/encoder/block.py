"""The Transformer block over flat tokens [T, D], with the variations that the literature has settled on.

A block knows its BlockConfig and the segments of the tokens; it knows nothing of images or texts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, assert_never, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from packvit.models.attention.segments import Layout, Segments, attention
from packvit.models.fields import check_types, require
from packvit.models.position.embedding import rotate

MlpKind = Literal["gelu_tanh", "gelu", "quick_gelu", "swiglu"]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One block, and the layers after the blocks that are built in the same way.

    Args:
        width: D, channels of a token; a multiple of `heads`.
        heads: number of attention heads.
        mlp: gelu_tanh (big_vision, SigLIP 2), gelu (exact; timm), quick_gelu (CLIP) or swiglu.
        mlp_ratio: hidden units of the MLP / width.
        qk_norm: normalisation of queries and keys per head: none, rms or layer (ViT-22B 2.1).
        biases: False leaves out the biases of the blocks' linear layers and of all norms.
        qkv_biases: False leaves out the biases of the projections to queries, keys and values. Together with
            rms norms, which have no biases and do not centre, this gives ViT-22B's layers (arXiv 2302.05442,
            2.1).
        norm: kind of the norms in the blocks and after them: layer or rms.
        norm_eps: epsilon of every norm.
        layer_scale: initial value of the per-channel residual scale (CaiT 2.1); 0 = none.
        parallel: attention and MLP side by side in one residual step (ViT-22B 2.1).

    Raises:
        ValueError: a value of another type or out of its range; names the field.
    """

    width: int = 192
    heads: int = 3
    mlp: MlpKind = "gelu_tanh"
    mlp_ratio: float = 4.0
    qk_norm: Literal["none", "rms", "layer"] = "rms"
    biases: bool = True
    qkv_biases: bool = True
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    layer_scale: float = 0.0
    parallel: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("width", "heads"):
            require(self, getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(self, self.layer_scale >= 0, f"layer_scale={self.layer_scale} must not be negative")
        require(self, self.width % self.heads == 0, f"heads={self.heads} does not divide width={self.width}")
        require(self, self.hidden >= 1, f"mlp_ratio={self.mlp_ratio} leaves the MLP no hidden unit")
        require(self, self.norm_eps > 0, f"norm_eps={self.norm_eps} must be positive")

    @property
    def bias_of_qkv(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.biases and self.qkv_biases

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Hidden units of the MLP."""
        return round(self.width * self.mlp_ratio)

    def linear_flops(self, tokens: int) -> int:
        """Forward FLOPs (2 a multiply-add) of one block's projections and MLP."""
        mlp = (3 if self.mlp == "swiglu" else 2) * self.width * self.hidden
        return 2 * tokens * (4 * self.width**2 + mlp)

    def attention_flops(self, squares: int) -> int:
        """Forward FLOPs of one block's attention; `squares` is the sum of the segments' squared lengths."""
        return 4 * squares * self.width


@dataclass(frozen=True)
class Context:
    """What the blocks know about the tokens besides their values.

    Args:
        layout: the position of each token in its image.
        segments: which tokens attend to each other.
        rope: cosines and sines [T, head_dim / 2], or None.
    """

    layout: Layout
    segments: Segments
    rope: tuple[Tensor, Tensor] | None = None


def linear(width_in: int, width_out: int, bias: bool, parts: int = 1) -> nn.Linear:
    """Xavier-uniform weights, as big_vision, with the bounds of each of `parts` fused projections."""
    layer = nn.Linear(width_in, width_out, bias=bias)
    bound = (6 / (width_in + width_out / parts)) ** 0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class RMSNorm(nn.RMSNorm):
    """RMSNorm, in float32 or better because half precision loses digits; returns the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32)
        weight = self.weight.to(dtype)
        # Compilers and GPUs have kernels that fuse the whole norm.
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return cast(Tensor, _RMSNormOnCPU.apply(x, weight, self.eps))
        return F.rms_norm(x.to(dtype), self.normalized_shape, weight, self.eps).to(x.dtype)


class _RMSNormOnCPU(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight with as few passes over memory as separate kernels allow.

    Between the passes it keeps x as it came and one number a row, where autograd would keep x and its
    normalised values in float32. `weight` has the dtype to compute in.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y = x.to(weight.dtype, copy=True)
        squares = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_()
        factor = squares.div_(x.shape[-1]).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, factor)
        return y.mul_(factor).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, factor = ctx.saved_tensors
        dim = x.shape[-1]
        with torch.autocast("cpu", enabled=False):
            y = x.to(weight.dtype, copy=True).mul_(factor)
            products = (grads[0].to(weight.dtype) * y).flatten(0, -2)
            grad_weight = products.sum(0)
            # The part of the gradient that would change the root mean square.
            along = (products @ weight).view(factor.shape).div_(dim)
            grad = torch.mul(grads[0], weight).addcmul_(y, along, value=-1).mul_(factor)
        return grad.to(x.dtype), grad_weight, None


def make_norm(config: BlockConfig, width: int) -> nn.Module:
    """The norm of the blocks, over the last dimension of size `width`."""
    match config.norm:
        case "rms":
            return RMSNorm(width, eps=config.norm_eps)
        case "layer":
            return nn.LayerNorm(width, eps=config.norm_eps, bias=config.biases)
        case _ as unknown:
            assert_never(unknown)


class Attention(nn.Module):
    """The layers around attention; queries and keys normalised per head if configured (ViT-22B 2.1)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = linear(config.width, 3 * config.width, config.bias_of_qkv, parts=3)
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


def _qk_norm(config: BlockConfig) -> nn.Module:
    match config.qk_norm:
        case "rms":
            return RMSNorm(config.head_dim, eps=config.norm_eps)
        case "layer":
            return nn.LayerNorm(config.head_dim, eps=config.norm_eps, bias=config.biases)
        case "none":
            return nn.Identity()
        case _ as unknown:
            assert_never(unknown)


class Mlp(nn.Module):
    """Two layers with a kind of GELU, or SwiGLU (arXiv 2002.05202), whose first half of fc1 is the gate."""

    def __init__(self, width: int, hidden: int, kind: MlpKind, bias: bool) -> None:
        super().__init__()
        self.kind: MlpKind = kind
        parts = 2 if kind == "swiglu" else 1
        self.fc1 = linear(width, parts * hidden, bias, parts)
        self.fc2 = linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        x = self.fc1(x)
        match self.kind:
            case "swiglu":
                gate, x = x.chunk(2, -1)
                return self.fc2(F.silu(gate) * x)
            case "quick_gelu":
                return self.fc2(x * torch.sigmoid(1.702 * x))
            case "gelu_tanh":
                return self.fc2(F.gelu(x, approximate="tanh"))
            case "gelu":
                return self.fc2(F.gelu(x))
            case _ as unknown:
                assert_never(unknown)


def before(
    block: "Block", x: Tensor, rope: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What a block does to each token before attention.

    Returns:
        Queries, keys and values [T, heads, head_dim]; and, if attention and MLP are parallel, the MLP's
        branch [T, D], so that the norm that both read is needed only here.
    """
    y = block.norm1(x)
    side = None if block.norm2 is not None else _times(block.mlp(y), block.scale2)
    return *block.attn.project(y, rope), side


def after(
    block: "Block", x: Tensor, mixed: Tensor, side: Tensor | None, keep1: Tensor | None, keep2: Tensor | None
) -> Tensor:
    """What a block does to each token after attention; [T, D] in the dtype of x.

    Args:
        mixed: [T, heads, head_dim], the output of attention.
        side: the branch that `before` has already computed.
        keep1, keep2: results of `Block.draw_keep` for the two branches.
    """
    branch = _times(block.attn.proj(mixed.flatten(1)), block.scale1)
    if block.norm2 is None:
        assert side is not None
        return (x + _times(branch + side, keep1)).to(x.dtype)
    x = (x + _times(branch, keep1)).to(x.dtype)
    branch = _times(block.mlp(block.norm2(x)), block.scale2)
    return (x + _times(branch, keep2)).to(x.dtype)


class Block(nn.Module):
    """Pre-norm attention and MLP, one after the other or side by side.

    Attention, whose kernels have plans of their own, and the drawing of random numbers lie between two
    functions that treat each token alone. `PackedViT.compile_blocks` replaces these by compiled ones.

    Args:
        config: the block's configuration.
        drop_path: probability that an image skips a residual branch of this block in training.
    """

    before: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None]] = staticmethod(before)
    after: Callable[..., Tensor] = staticmethod(after)

    def __init__(self, config: BlockConfig, drop_path: float = 0.0) -> None:
        super().__init__()
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
        """[T, D] -> [T, D], in the dtype of x."""
        q, k, v, side = self.before(self, x, context.rope)
        mixed = attention(q, k, v, context.segments)
        keep1 = self.draw_keep(x, context.layout)
        keep2 = None if self.norm2 is None else self.draw_keep(x, context.layout)
        return self.after(self, x, mixed, side, keep1, keep2)

    def draw_keep(self, x: Tensor, layout: Layout) -> Tensor | None:
        """Factors [T, 1] that zero a branch for all tokens of some images and preserve its mean (arXiv
        1603.09382); None if nothing is zeroed."""
        if not self.training or not self.drop_path:
            return None
        kept = torch.rand(layout.num_owners + 1, device=x.device) >= self.drop_path
        # In half precision the factor would change the mean.
        factor = kept.to(torch.promote_types(x.dtype, torch.float32)) / (1 - self.drop_path)
        return factor[layout.owner][:, None]  # padding, -1, reads the entry beyond the images


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor
