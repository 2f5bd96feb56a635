"""The Vision Transformer over packed batches. Imports only common and packing."""

from packvit.models.attention.backends import BACKENDS, choose_backend
from packvit.models.attention.cuda import activate_flash
from packvit.models.attention.measure import fastest_backend, measure_backends
from packvit.models.attention.segments import Layout, Segments, attention
from packvit.models.config import ViTConfig
from packvit.models.describe import describe_file, describe_model, describe_positions, describe_text_tower
from packvit.models.encoder.block import BlockConfig
from packvit.models.files.checkpoint import hash_model, load_model, save_model
from packvit.models.files.export import export_model
from packvit.models.files.remote import local_model
from packvit.models.presets import PRESETS, preset
from packvit.models.text.config import TextConfig, TwoTowersConfig
from packvit.models.text.files import (
    find_own_tokenizer,
    has_text_tower,
    load_two_towers,
    save_two_towers,
)
from packvit.models.text.packed import PackedText, cut_packs
from packvit.models.text.prompts import (
    AS_IT_IS,
    average_by_class,
    average_prompts,
    embed_prompts,
    embed_tokens,
    encode_prompts,
    read_templates,
)
from packvit.models.text.tokenizer import TextEncoder, Tokenizer, Tokens, load_tokenizer, train_tokenizer
from packvit.models.text.tower import TextTower
from packvit.models.text.two_towers import LogitScale, TwoTowers, start_projection, unit
from packvit.models.vit import Outputs, PackedViT

__all__ = [
    "AS_IT_IS",
    "BACKENDS",
    "PRESETS",
    "BlockConfig",
    "Layout",
    "LogitScale",
    "Outputs",
    "PackedText",
    "PackedViT",
    "Segments",
    "TextConfig",
    "TextEncoder",
    "TextTower",
    "Tokenizer",
    "Tokens",
    "TwoTowers",
    "TwoTowersConfig",
    "ViTConfig",
    "activate_flash",
    "attention",
    "average_by_class",
    "average_prompts",
    "choose_backend",
    "cut_packs",
    "describe_file",
    "describe_model",
    "describe_positions",
    "describe_text_tower",
    "embed_prompts",
    "embed_tokens",
    "encode_prompts",
    "export_model",
    "fastest_backend",
    "find_own_tokenizer",
    "has_text_tower",
    "hash_model",
    "load_model",
    "load_tokenizer",
    "load_two_towers",
    "local_model",
    "measure_backends",
    "preset",
    "read_templates",
    "save_model",
    "save_two_towers",
    "start_projection",
    "train_tokenizer",
    "unit",
]
