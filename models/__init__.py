"""The Vision Transformer over packed batches. Knows packing, and nothing else of packvit."""

from packvit.models.attention import BACKENDS, Segments, attention, choose_backend
from packvit.models.checkpoint import load_model, save_model
from packvit.models.config import ViTConfig
from packvit.models.vit import PackedViT

__all__ = [
    "BACKENDS",
    "PackedViT",
    "Segments",
    "ViTConfig",
    "attention",
    "choose_backend",
    "load_model",
    "save_model",
]
