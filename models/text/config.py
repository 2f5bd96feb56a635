"""TextConfig and TwoTowersConfig: the definitions of a text tower, and of it together with an image tower."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from packvit.models.config import ViTConfig
from packvit.models.encoder.block import BlockConfig
from packvit.models.fields import require


@dataclass(frozen=True, kw_only=True)
class TextConfig(BlockConfig):
    """A Transformer over packed texts with full attention in each text; see BlockConfig for the other fields.

    Args:
        depth: number of blocks.
        vocab_size: number of token ids; the tokeniser may not have more.
        max_tokens: number of positions, the length of the longest text.
        pool: map (attention pooling with a learned query) or last, the text's last token.
        embed_dim: outputs of the projection; 0 = none, the tower returns its pooled features.
        fixed_length: every text is padded to max_tokens, and padding is attended to like any token (SigLIP).
        pad_id: the token that pads texts of fixed length.
    """

    depth: int = 12
    vocab_size: int = 32_000
    max_tokens: int = 64
    pool: Literal["map", "last"] = "map"
    embed_dim: int = 0
    fixed_length: bool = False
    pad_id: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depth", "vocab_size", "max_tokens"):
            require(self, getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(self, self.embed_dim >= 0, f"embed_dim={self.embed_dim} must not be negative")
        require(
            self,
            0 <= self.pad_id < self.vocab_size,
            f"pad_id={self.pad_id} is not one of vocab_size={self.vocab_size} tokens",
        )

    @property
    def feature_dim(self) -> int:
        """Width of the tower's output."""
        return self.embed_dim or self.width

    def flops(self, texts: int, tokens: int, squares: int) -> int:
        """Forward FLOPs (2 a multiply-add) of some texts.

        Args:
            tokens, squares: sums over texts of their tokens and of the squares of these.
        """
        d = self.width
        total = self.depth * (self.linear_flops(tokens) + self.attention_flops(squares))
        if self.pool == "map":
            total += 2 * tokens * (2 * d * d + 2 * d) + 2 * texts * (2 * d * d + 2 * d * self.hidden)
        return total + 2 * texts * d * self.embed_dim


@dataclass(frozen=True, kw_only=True)
class TwoTowersConfig:
    """An image tower and a text tower whose embeddings have one width.

    Args:
        image: the image tower; its embedding is the output of its head, or its features without a head.
        text: the text tower.
        temperature: initial factor of the logits, e^t' in SigLIP (arXiv 2303.15343, 3.2).
        bias: initial value that is added to them; None: no bias.

    Raises:
        ValueError: the widths differ or a value is out of its range.
    """

    image: ViTConfig = field(default_factory=ViTConfig)
    text: TextConfig = field(default_factory=TextConfig)
    temperature: float = 10.0
    bias: float | None = -10.0

    def __post_init__(self) -> None:
        require(self, self.temperature > 0, f"temperature={self.temperature} must be positive")
        image, text = self.embed_dim, self.text.feature_dim
        require(
            self,
            image == text,
            f"images are embedded in {image} channels (num_classes, or the features of a model without a "
            f"head), texts in {text} (embed_dim): make them the same",
        )

    @property
    def embed_dim(self) -> int:
        """E, the width of both embeddings."""
        return self.image.num_classes or self.image.feature_dim

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "TwoTowersConfig":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field that does not exist or a value that a field cannot take, by name.
        """
        values = dict(values)
        image, text = ViTConfig.from_dict(values.pop("image", {})), values.pop("text", {})
        for kind, given in ((TextConfig, text), (TwoTowersConfig, values)):
            unknown = sorted(given.keys() - {f.name for f in dataclasses.fields(kind)})
            if unknown:
                raise ValueError(f"{kind.__name__}: unknown: {', '.join(unknown)}")
        return TwoTowersConfig(image=image, text=TextConfig(**text), **values)
