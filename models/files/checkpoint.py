"""Models in files: our own folder (`model.safetensors`, `config.json`) and everyone else's weights."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from packvit.models.files.weights import build_model, read_weights, write_weights
from packvit.models.vit import PackedViT


def save_model(model: PackedViT, folder: str | Path) -> Path:
    """Write `model.safetensors` and `config.json` to `folder`, which is created if needed; returns it."""
    write_weights(model, model.config, Path(folder))
    return Path(folder)


def hash_model(model: PackedViT) -> str:
    """SHA-256 of the weights, by name and bytes, in hexadecimal digits; the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_model(path: str | Path, **config: Any) -> PackedViT:
    """Load weights as a PackedViT in eval mode, on the CPU, in the weights' own dtype.

    The format is recognised by the keys: packvit, big_vision, timm or Hugging Face. A foreign model keeps its
    patch buffer and resize operator; nothing is resized here. If there are two towers, for images and for
    texts, the image tower is loaded.

    Args:
        path: a folder with model.safetensors, a .safetensors or .npz file, each here or in an object store
            (s3://bucket/runs/x), or, if there is none, a model on the Hugging Face hub: org/name or
            hf-hub:org/name.
        config: ViTConfig fields that replace stored ones, or that the weights do not determine: `heads`
            (default: that of the preset of this width, or width // 64), `mlp`, `norm_eps`, `image_mean`,
            `image_std` (default 0.5) and so on. A lower `depth` loads only the first blocks and the head, for
            models that were trained at random depths (`train.depths`).

    Raises:
        FileNotFoundError: there is nothing at `path` or on the hub.
        ImportError: it might be on the hub, but huggingface_hub is not installed.
        ValueError: weights and configuration do not fit; names the keys, shapes or fields.
    """
    return build_model(PackedViT, read_weights(Path(path), config))
