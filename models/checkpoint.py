"""Models in files: our own folder (`model.safetensors`, `config.json`) and everyone else's weights."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from packvit.models.config import ViTConfig
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
    """Load weights as a PackedViT in eval mode, on the CPU.

    Args:
        path: our folder or the model.safetensors in it.
        config: ViTConfig fields that replace the stored ones.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: weights and configuration do not fit; names the keys, shapes or fields.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no model at {path}")
    weights = path / "model.safetensors" if path.is_dir() else path
    values = json.loads((weights.parent / "config.json").read_text())
    if values.pop("model_type", None) != "packvit":
        raise ValueError(f"{weights.parent / 'config.json'} is not a packvit model's")
    if values.pop("format_version", None) != FORMAT_VERSION:
        raise ValueError(f"{weights.parent / 'config.json'} has another format version than {FORMAT_VERSION}")
    return build_model(ViTConfig.from_dict({**values, **config}), load_file(weights), str(weights))


def build_model(config: ViTConfig, state: dict[str, Tensor], source: str) -> PackedViT:
    """A model of `config` with the weights `state`, which came from `source`; eval mode.

    Raises:
        ValueError: a key that is missing or unknown, or a wrong shape, by name.
    """
    model = PackedViT(config)
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        parts = [
            f"{what} {', '.join(names)}"
            for what, names in (("lacks", missing), ("has unknown", unknown))
            if names
        ]
        raise ValueError(f"{source} {' and '.join(parts)}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, the model's is {tuple(own[name].shape)}"
            )
    model.load_state_dict(state)
    return model.eval()
