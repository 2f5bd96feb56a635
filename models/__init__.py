"""The Vision Transformer over packed batches. Knows packing, and nothing else of packvit."""

from packvit.models.attention import BACKENDS, Segments, attention, choose_backend
from packvit.models.checkpoint import load_model, save_model
from packvit.models.config import ViTConfig
from packvit.models.convert.export import export_model
from packvit.models.presets import PRESETS, preset
from packvit.models.vit import Outputs, PackedViT

__all__ = [
    "BACKENDS",
    "PRESETS",
    "Outputs",
    "PackedViT",
    "Segments",
    "ViTConfig",
    "attention",
    "choose_backend",
    "export_model",
    "load_model",
    "preset",
    "save_model",
]
