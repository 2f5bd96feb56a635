"""ViTConfig: the definition of a model, as a frozen dataclass that can be stored in a JSON file.

It has every field that changes the numbers of a forward pass, but not where the pass runs (device, dtype,
attention backend). `flops` is the only place where the cost of an image is computed.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from packvit.models.encoder.block import BlockConfig
from packvit.models.encoder.pool import PoolKind
from packvit.models.fields import require
from packvit.models.position.embedding import PositionConfig
from packvit.models.resample import Operator
from packvit.packing import PackedBatch, Shape


@dataclass(frozen=True, kw_only=True)
class ViTConfig(BlockConfig, PositionConfig):
    """A Vision Transformer over packed tokens; see BlockConfig and PositionConfig for the other fields.

    Args:
        depth: number of blocks.
        num_classes: outputs of the head; 0 = no head, the model returns its features.
        pre_norm: a norm after the embeddings, as in CLIP's towers.
        drop_path: probability that an image skips a residual branch, growing linearly with depth to this
            value.
        checkpoint_every: recompute every n-th block in the backward pass; 0 = none, 1 = all.
        cls: a learned token before each image's tokens.
        registers: number of further learned tokens (arXiv 2309.16588).
        pool: mean, map (attention pooling with a learned query), cls, or cls_mean (both, 2 * width).
        last_norm: the last norm: of tokens, before pooling; of pooled features (timm's fc_norm); or none.
        rep_size: width of a tanh layer between pooling and head; 0 = none.
        patch_buffer: P, side of the stored patch embedding (FlexiViT 3.4).
        patch_operator: how the stored embedding is resized to other patch sizes; see patch_embed.
        image_mean: mean of each channel, for pixels in [0, 1].
        image_std: standard deviation of each channel, for pixels in [0, 1].
    """

    depth: int = 12
    num_classes: int = 1000
    pre_norm: bool = False
    drop_path: float = 0.0
    checkpoint_every: int = 0
    cls: bool = False
    registers: int = 0
    pool: PoolKind = "map"
    last_norm: Literal["tokens", "pooled", "none"] = "tokens"
    rep_size: int = 0
    patch_buffer: int = 32
    patch_operator: Operator = "bilinear_antialias"
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        BlockConfig.__post_init__(self)
        PositionConfig.__post_init__(self)
        self.check_widths(self.width, self.head_dim)
        for name in ("depth", "patch_buffer"):
            require(self, getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("num_classes", "registers", "rep_size", "checkpoint_every"):
            require(self, getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        require(self, 0 <= self.drop_path < 1, f"drop_path={self.drop_path} must lie in [0, 1)")
        require(self, min(self.image_std) > 0, f"image_std={self.image_std} must be positive")
        require(self, len(self.pos_grid) == 2, f"pos_grid={self.pos_grid} must be two numbers, (rows, cols)")
        if self.pool in ("cls", "cls_mean"):
            require(self, self.cls, f"pool={self.pool!r} needs cls=True")

    @property
    def prefix(self) -> int:
        """Tokens that the model puts before each image's own: cls, then registers."""
        return int(self.cls) + self.registers

    @property
    def pooled_width(self) -> int:
        """Width of the pooled features."""
        return self.width * (2 if self.pool == "cls_mean" else 1)

    @property
    def feature_dim(self) -> int:
        """Width of the features that enter the head."""
        return self.rep_size or self.pooled_width

    def flops(self, tokens: int, patch_size: int) -> int:
        """Forward FLOPs (2 a multiply-add) of one image of `tokens` kept patches of side `patch_size`.

        Counts matrix products: patch embedding, blocks (attention is quadratic in the image's own tokens),
        pooling and head; not norms, activations or the resize of the embedding, which is shared by a batch.
        """
        return self._flops({(patch_size, patch_size): tokens}, 1, tokens, tokens**2)

    def batch_flops(self, batch: PackedBatch, depth: int | None = None) -> int:
        """The sum of `flops` over the images of a batch with any patch shapes, without waiting for the
        device.

        Args:
            depth: number of blocks that run; None: all.
        """
        if depth is not None:
            return dataclasses.replace(self, depth=depth).batch_flops(batch)
        stats = batch.stats()
        shapes = {shape: len(slots) for shape, slots in batch.slots.items()}
        return self._flops(shapes, stats.images, stats.tokens, stats.squared_lengths)

    def _flops(self, shapes: Mapping[Shape, int], images: int, tokens: int, squares: int) -> int:
        """Forward FLOPs of some images.

        Args:
            shapes: how many patches they have of each shape.
            tokens, squares: sums over images of their tokens and of the squares of these.
        """
        d, prefix = self.width, self.prefix
        total = sum(2 * number * math.prod(shape) * 3 * d for shape, number in shapes.items())
        # With its prefix an image of n tokens has n + prefix of them.
        squares += 2 * prefix * tokens + prefix**2 * images
        total += self.depth * self.linear_flops(tokens + prefix * images)
        total += self.depth * self.attention_flops(squares)
        if self.pool == "map":
            total += 2 * tokens * (2 * d * d + 2 * d) + 2 * images * (2 * d * d + 2 * d * self.hidden)
        head = self.pooled_width * self.rep_size + self.feature_dim * self.num_classes
        return total + 2 * images * head

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
        if unknown:
            raise ValueError(f"ViTConfig: unknown: {', '.join(unknown)}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return ViTConfig(**fields)
