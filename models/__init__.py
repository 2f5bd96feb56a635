"""The Vision Transformer over packed batches. Knows packing, and nothing else of packvit."""

from packvit.models.attention.backends import BACKENDS, choose_backend
from packvit.models.attention.cuda import activate_flash
from packvit.models.attention.measure import fastest_backend, measure_backends
from packvit.models.attention.segments import Layout, Segments, attention
from packvit.models.config import ViTConfig
from packvit.models.encoder.block import BlockConfig
from packvit.models.files.checkpoint import hash_model, load_model, save_model
from packvit.models.files.export import export_model
from packvit.models.presets import PRESETS, preset
from packvit.models.vit import Outputs, PackedViT

__all__ = [
    "BACKENDS",
    "PRESETS",
    "BlockConfig",
    "Layout",
    "Outputs",
    "PackedViT",
    "Segments",
    "ViTConfig",
    "activate_flash",
    "attention",
    "choose_backend",
    "export_model",
    "fastest_backend",
    "hash_model",
    "load_model",
    "measure_backends",
    "preset",
    "save_model",
]
