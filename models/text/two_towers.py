"""TwoTowers: images and texts in one space, in which matching ones are close (CLIP, SigLIP)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packvit.models.text.config import TwoTowersConfig
from packvit.models.text.packed import PackedText
from packvit.models.text.tower import TextTower
from packvit.models.vit import PackedViT
from packvit.packing import PackedBatch


class LogitScale(nn.Module):
    """How cosines become logits: l = e^t * cosine + b."""

    def __init__(self, temperature: float, bias: float | None) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.full((1,), math.log(temperature)))
        self.b = None if bias is None else nn.Parameter(torch.full((1,), float(bias)))

    def forward(self) -> tuple[Tensor, Tensor]:
        """e^t and b, [1] each; b is 0 if there is none."""
        return self.t.exp(), torch.zeros_like(self.t) if self.b is None else 1 * self.b


class TwoTowers(nn.Module):
    """An image tower and a text tower.

    Args:
        config: what they are.
    """

    def __init__(self, config: TwoTowersConfig) -> None:
        super().__init__()
        self.config = config
        self.image = PackedViT(config.image)
        start_projection(self.image)
        self.text = TextTower(config.text)
        self.logits = LogitScale(config.temperature, config.bias)

    def embed_images(self, batch: PackedBatch) -> Tensor:
        """Unit vectors [N, E], float32 or better."""
        return unit(self.image(batch))

    def embed_texts(self, text: PackedText) -> Tensor:
        """Unit vectors [N, E], float32 or better."""
        return unit(self.text(text))

    def forward(self, batch: PackedBatch, text: PackedText) -> Tensor:
        """Logits [images, texts] of all pairs."""
        scale, bias = self.logits()
        return scale * self.embed_images(batch) @ self.embed_texts(text).T + bias


def start_projection(image: PackedViT) -> None:
    """Start the head of an image tower, if it has one: a classifier's zeros have no direction."""
    if image.head is not None:
        nn.init.xavier_uniform_(image.head.weight)


def unit(x: Tensor) -> Tensor:
    """Rows [N, E] of length 1, in float32 or better."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1, eps=1e-8)
