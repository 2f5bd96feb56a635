"""Weights and configurations in files, before there is a model: found, read and written."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from packvit.common.tensors import save_tensors
from packvit.models.config import ViTConfig
from packvit.models.files.hub import download, is_hub_name
from packvit.models.files.remote import local_model
from packvit.models.files.translate import translate

FORMAT_VERSION = 1
MODEL, TWO_TOWERS = "packvit", "packvit_two_towers"  # types of model in config.json
UNREADABLE = (SafetensorError, zipfile.BadZipFile, EOFError, ValueError)  # raised by the readers of files
NO_OPTIONS: Mapping[str, Any] = {}
Model = TypeVar("Model", bound=nn.Module)


class Weights(NamedTuple):
    """A configuration and weights.

    config: the model's configuration.
    state: weights under our names.
    origin: the file's own names of foreign weights, for messages.
    file: where they come from.
    """

    config: ViTConfig
    state: dict[str, Tensor]
    origin: dict[str, str]
    file: Path


def write_weights(model: nn.Module, config: ViTConfig, folder: Path) -> None:
    """Write `model.safetensors` and `config.json` to `folder`, which is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(state, folder / "model.safetensors")
    stored = {"model_type": MODEL, "format_version": FORMAT_VERSION, **config.to_dict()}
    (folder / "config.json").write_text(json.dumps(stored, indent=2) + "\n")


def read_weights(path: Path, config: dict[str, Any], **options: Any) -> Weights:
    """Weights of any project under our names; arguments and errors as for `load_model`.

    Args:
        options: of a download from the hub; see `download`.
    """
    weights = find_weights(path, options)
    tensors = read_tensors(weights)
    stored = stored_config(weights)
    origin: dict[str, str] = {}
    if stored.get("model_type") in (MODEL, TWO_TOWERS):
        fields = own_fields(stored, weights)
        if stored["model_type"] == TWO_TOWERS:
            fields = fields["image"]
            tensors = {k.removeprefix("image."): t for k, t in tensors.items() if k.startswith("image.")}
    else:
        try:
            tensors, fields, origin = translate(tensors, stored)
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from None
    stored_depth = fields.get("depth", ViTConfig.depth)
    made = ViTConfig.from_dict({**fields, **config})
    if made.depth > stored_depth:
        raise ValueError(f"{weights} has {stored_depth} blocks: depth={made.depth} must be at most as many")
    return Weights(made, first_blocks(tensors, made.depth), origin, weights)


def first_blocks(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The weights without those of blocks beyond the first `depth`."""

    def later(name: str) -> bool:
        part, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        return part == "blocks" and number.isdecimal() and int(number) >= depth

    return {name: tensor for name, tensor in tensors.items() if not later(name)}


def build_model(make: Callable[[ViTConfig], Model], weights: Weights) -> Model:
    """The model that `make` makes from the configuration, with its weights, in eval mode and in their dtype.

    Raises:
        ValueError: names or shapes do not fit.
    """
    config, state, origin, source = weights
    # A file without a patch embedding is refused by name below.
    dtype = state.get("patch_embed.weight", torch.empty(0)).dtype
    model = make(config).to(dtype)
    fill(model, state, origin, source)
    return model.eval()


def own_fields(stored: dict[str, Any], weights: Path) -> dict[str, Any]:
    """The fields of a config.json that this project wrote.

    Raises:
        ValueError: it has another version.
    """
    if stored.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{weights.parent} has format version {stored.get('format_version')}, this packvit reads "
            f"{FORMAT_VERSION}"
        )
    return {key: value for key, value in stored.items() if key not in ("model_type", "format_version")}


def fill(model: nn.Module, state: dict[str, Tensor], origin: dict[str, str], source: Path) -> None:
    """Give a model its weights.

    Args:
        origin: the file's own names, for messages.
        source: the file, for messages.

    Raises:
        ValueError: weights are missing, unknown or have another shape; names them.
    """
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


def find_weights(path: Path, options: Mapping[str, Any] = NO_OPTIONS) -> Path:
    """The file of weights that `path` names.

    Args:
        options: of a download from the hub; see `download`.
    """
    path = local_model(path)
    if not path.exists() and is_hub_name(path.as_posix()):
        path = download(path.as_posix(), **options)
    weights = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not weights.exists():
        # big_vision's models on the hub are a single file of any name.
        others = [*path.glob("*.npz"), *path.glob("*.safetensors")]
        weights = others[0] if len(others) == 1 else weights
    if not weights.exists():
        raise FileNotFoundError(f"no model at {path}: {weights} does not exist")
    return weights


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
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> ValueError:
    """The error for a file that a reader could not read."""
    return ValueError(f"{path} is not a readable .safetensors or .npz file: {error}")


def tensor_names(path: Path) -> list[str]:
    """The names of all tensors of a .safetensors or .npz file; raises like `read_tensors`."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return list(arrays.files)
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def stored_config(weights: Path) -> dict[str, Any]:
    """config.json beside our or a hub's model.safetensors, with image_mean and image_std of transformers'
    preprocessor_config.json; empty if there is none."""
    if weights.name != "model.safetensors":
        return {}
    stored = _read_json(weights.with_name("config.json"))
    if stored.get("model_type") not in (MODEL, TWO_TOWERS):
        preprocessor = _read_json(weights.with_name("preprocessor_config.json"))
        if preprocessor.get("do_normalize", True):
            stored |= {key: preprocessor[key] for key in ("image_mean", "image_std") if key in preprocessor}
    return stored


def _read_json(path: Path) -> dict[str, Any]:
    """A file's object; empty when there is no file."""
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds no JSON object")
    return stored
