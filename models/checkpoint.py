"""Models in files: our own folder (`model.safetensors`, `config.json`) and everyone else's weights."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from packvit.models.config import ViTConfig
from packvit.models.convert import translate
from packvit.models.vit import PackedViT

FORMAT_VERSION = 1


def save_model(model: PackedViT, folder: str | Path) -> Path:
    """Write `model.safetensors` and `config.json` to `folder`, which is made if needed; returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "packvit", "format_version": FORMAT_VERSION, **model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def load_model(path: str | Path, **config: Any) -> PackedViT:
    """Load weights as a PackedViT in eval mode, on the CPU, in the weights' own dtype.

    The format is recognised by the keys: ours, big_vision, timm or Hugging Face. A foreign model keeps its
    patch buffer and resize operator; nothing is resized here.

    Args:
        path: a folder with model.safetensors, or a .safetensors or .npz file.
        config: ViTConfig fields that replace what is stored, or that the weights don't tell: `heads`
            (default width // 64), `mlp`, `norm_eps`, `image_mean`, `image_std` (default 0.5) and so on.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: weights and configuration do not fit; names the keys, shapes or fields.
    """
    path = Path(path)
    weights = path / "model.safetensors" if path.is_dir() else path
    if not weights.exists():
        raise FileNotFoundError(f"no model at {path}: {weights} does not exist")
    tensors = read_tensors(weights)
    stored = _stored_config(weights)
    origin: dict[str, str] = {}
    if stored.get("model_type") == "packvit":
        version = stored.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{weights.parent} has format version {version}, this packvit reads {FORMAT_VERSION}"
            )
        fields = {key: value for key, value in stored.items() if key != "model_type"}
    else:
        try:
            tensors, fields, origin = translate(tensors, stored)
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from None
    return _build(ViTConfig.from_dict({**fields, **config}), tensors, origin, weights)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors or .npz file.

    Raises:
        ValueError: the file is neither.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {
                    key: torch.from_numpy(arrays[key])
                    for key in arrays.files
                    if arrays[key].dtype.kind == "f"
                }
        return load_file(path)
    except (SafetensorError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no readable .safetensors or .npz file: {error}") from None


def _stored_config(weights: Path) -> dict[str, Any]:
    """config.json beside our or a hub's model.safetensors; empty when there is none."""
    path = weights.parent / "config.json"
    if weights.name != "model.safetensors" or not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds no JSON object")
    return stored


def _build(config: ViTConfig, state: dict[str, Tensor], origin: dict[str, str], source: Path) -> PackedViT:
    """The model with its weights; `origin` gives the file's own names for messages."""
    dtype = state["patch_embed.weight"].dtype if "patch_embed.weight" in state else torch.float32
    model = PackedViT(config).to(dtype)
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"lacks {', '.join(missing)}")
        if unknown:
            parts.append(f"has unknown {', '.join(origin.get(name, name) for name in unknown)}")
        raise ValueError(f"{source} {' and '.join(parts)}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{source}: {origin.get(name, name)} has shape {tuple(tensor.shape)}, "
                f"{name} needs {tuple(own[name].shape)}"
            )
    model.load_state_dict(state)
    return model.eval()
