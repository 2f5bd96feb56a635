"""ViTConfig: what a model is, as a frozen dataclass that a JSON file can hold.

Everything that changes the numbers of a forward pass stands here; where it runs (device, dtype, attention
backend) does not. `flops` is the one place where the cost of an image is computed.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

Operator = Literal[
    "bilinear", "bilinear_antialias", "bicubic_antialias", "natural", "plain_bilinear_antialias"
]
PosResize = Literal["bilinear_antialias", "bicubic_antialias", "bicubic"]


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer over packed tokens.

    Args:
        width, depth, heads: D, number of blocks, attention heads; heads divides width.
        num_classes: outputs of the head; 0 = no head, the model returns its features.
        mlp: gelu_tanh (big_vision, SigLIP 2), gelu (exact; timm), quick_gelu (CLIP) or swiglu.
        mlp_ratio: hidden units of the MLP / width.
        qk_norm: normalisation of queries and keys per head: none, rms or layer (ViT-22B 2.1).
        biases: False leaves out the biases of the blocks' linear layers and of all norms (ViT-22B 2.1).
        norm: layer or rms, of the blocks and after them.
        norm_eps: epsilon of every norm.
        layer_scale: initial value of the per-channel residual scale (CaiT 2.1); 0 = none.
        parallel: attention and MLP side by side in one residual step (ViT-22B 2.1).
        pre_norm: a norm after the embeddings, as CLIP's towers have.
        drop_path: chance, growing linearly with depth to this value, that an image skips a residual branch.
        checkpoint_every: recompute every n-th block in the backward pass; 0 = none, 1 = all.
        cls: a learned token before each image's tokens.
        registers: number of further learned tokens (arXiv 2309.16588).
        pool: mean, map (attention pooling with a learned query), cls, or cls_mean (both, 2 * width).
        last_norm: of tokens, before pooling; of pooled features (timm's fc_norm); or none.
        rep_size: width of a tanh layer between pooling and head; 0 = none.
        patch_buffer: P, side of the stored patch embedding (FlexiViT 3.4).
        patch_operator: how the stored embedding becomes a smaller or larger one; see patch_embed.
        image_mean, image_std: per channel, of pixels in [0, 1].
        pos_embed: factorized (NaViT 3.4), grid_2d (one table resized per image), rope_2d or none.
        pos_table: of factorized: learned, sinusoidal or fourier.
        pos_coords: absolute index, fractional (of the own side) or
            fractional_aspect (of the longer side).
        pos_combine: of factorized: sum, product or stack of the two axes; fourier is joint and ignores it.
        pos_grid: (rows, cols) of the tables; also the length that a fractional coordinate is scaled to.
        pos_resize: of grid_2d: the resampling of the table.
        rope_theta: of rope_2d: base of the frequencies.
    """

    width: int = 192
    depth: int = 12
    heads: int = 3
    num_classes: int = 1000
    mlp: Literal["gelu_tanh", "gelu", "quick_gelu", "swiglu"] = "gelu_tanh"
    mlp_ratio: float = 4.0
    qk_norm: Literal["none", "rms", "layer"] = "rms"
    biases: bool = True
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    layer_scale: float = 0.0
    parallel: bool = False
    pre_norm: bool = False
    drop_path: float = 0.0
    checkpoint_every: int = 0
    cls: bool = False
    registers: int = 0
    pool: Literal["mean", "map", "cls", "cls_mean"] = "map"
    last_norm: Literal["tokens", "pooled", "none"] = "tokens"
    rep_size: int = 0
    patch_buffer: int = 32
    patch_operator: Operator = "bilinear_antialias"
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pos_embed: Literal["factorized", "grid_2d", "rope_2d", "none"] = "factorized"
    pos_table: Literal["learned", "sinusoidal", "fourier"] = "learned"
    pos_coords: Literal["absolute", "fractional", "fractional_aspect"] = "fractional"
    pos_combine: Literal["sum", "product", "stack"] = "sum"
    pos_grid: tuple[int, int] = (16, 16)
    pos_resize: PosResize = "bilinear_antialias"
    rope_theta: float = 100.0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _check_type(f.name, f.type, getattr(self, f.name))
        for name in ("width", "depth", "heads", "patch_buffer"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("num_classes", "registers", "rep_size", "checkpoint_every", "layer_scale"):
            _require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        _require(self.width % self.heads == 0, f"heads={self.heads} does not divide width={self.width}")
        _require(self.hidden >= 1, f"mlp_ratio={self.mlp_ratio} leaves the MLP no hidden unit")
        _require(self.norm_eps > 0, f"norm_eps={self.norm_eps} must be positive")
        _require(0 <= self.drop_path < 1, f"drop_path={self.drop_path} must lie in [0, 1)")
        _require(min(self.image_std) > 0, f"image_std={self.image_std} must be positive")
        _require(min(self.pos_grid) >= 1, f"pos_grid={self.pos_grid} must be at least (1, 1)")
        _require(self.rope_theta > 0, f"rope_theta={self.rope_theta} must be positive")
        if self.pool in ("cls", "cls_mean"):
            _require(self.cls, f"pool={self.pool!r} needs cls=True")
        if self.pos_embed == "rope_2d":
            _require(
                self.head_dim % 4 == 0,
                f"pos_embed='rope_2d' needs a multiple of 4 as width / heads, got {self.head_dim}",
            )
        if self.pos_embed == "factorized" and self.pos_combine == "stack":
            _require(self.width % 2 == 0, f"pos_combine='stack' needs an even width, got {self.width}")
        if self.pos_embed == "factorized" and self.pos_table != "learned":
            _require(
                self.width % 4 == 0,
                f"pos_table={self.pos_table!r} needs a multiple of 4 as width, got {self.width}",
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Hidden units of the MLP."""
        return round(self.width * self.mlp_ratio)

    @property
    def prefix(self) -> int:
        """Tokens that the model puts before each image's own: cls, then registers."""
        return int(self.cls) + self.registers

    @property
    def feature_dim(self) -> int:
        """Width of the pooled features that enter the head."""
        return self.rep_size or self.width * (2 if self.pool == "cls_mean" else 1)

    def flops(self, tokens: int, patch_size: int) -> int:
        """Forward FLOPs (2 a multiply-add) of one image of `tokens` kept patches of side `patch_size`.

        Counts matrix products: patch embedding, blocks (attention is quadratic in the image's own tokens),
        pooling and head; not norms, activations or the resize of the embedding, which is shared by a batch.
        """
        n, d = tokens + self.prefix, self.width
        mlp = (3 if self.mlp == "swiglu" else 2) * d * self.hidden
        total = tokens * patch_size**2 * 3 * d
        total += self.depth * (n * (4 * d * d + mlp) + 2 * n * n * d)
        if self.pool == "map":
            total += 2 * tokens * d * d + 2 * tokens * d + 2 * d * d + 2 * d * self.hidden
        pooled = d * (2 if self.pool == "cls_mean" else 1)
        total += pooled * self.rep_size + self.feature_dim * self.num_classes
        return 2 * total

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "ViTConfig":
        """The inverse of `to_dict`; lists become tuples.

        Raises:
            ValueError: a field that does not exist or a value that a field cannot take, by name.
        """
        unknown = sorted(values.keys() - {f.name for f in dataclasses.fields(ViTConfig)})
        _require(not unknown, f"unknown: {', '.join(unknown)}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return ViTConfig(**fields)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"ViTConfig: {message}")


def _check_type(name: str, kind: Any, value: Any) -> None:
    """Refuse a value that the field's annotation does not allow; an int may stand for a float."""
    if get_origin(kind) is Literal:
        _require(value in get_args(kind), f"{name}={value!r} is none of {', '.join(get_args(kind))}")
    elif get_origin(kind) is tuple:
        item, count = get_args(kind)[0], len(get_args(kind))
        ok = isinstance(value, tuple) and len(value) == count and all(_is(item, v) for v in value)
        _require(ok, f"{name}={value!r} must be {count} of {item.__name__}")
    else:
        _require(_is(kind, value), f"{name}={value!r} must be of type {kind.__name__}")


def _is(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind
