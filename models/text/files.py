"""Two towers in files: our own folder, and other projects' weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packvit.common.tensors import save_tensors
from packvit.models.files.weights import (
    FORMAT_VERSION,
    MODEL,
    TWO_TOWERS,
    fill,
    find_weights,
    own_fields,
    read_tensors,
    stored_config,
    tensor_names,
)
from packvit.models.text.config import TwoTowersConfig
from packvit.models.text.foreign import has_texts, translate_towers
from packvit.models.text.tokenizer import FILES, Tokenizer, load_tokenizer
from packvit.models.text.two_towers import TwoTowers


def save_two_towers(model: TwoTowers, folder: str | Path) -> Path:
    """Write `model.safetensors` and `config.json` to `folder`, which is created if needed; returns it.

    `load_model` reads the image tower from the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(state, folder / "model.safetensors")
    config = {"model_type": TWO_TOWERS, "format_version": FORMAT_VERSION, **model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def has_text_tower(path: str | Path) -> bool:
    """Whether there are two towers that `load_two_towers` can read; does not read the weights.

    Raises:
        FileNotFoundError, ImportError, ValueError: as for `load_model`.
    """
    weights = find_weights(Path(path))
    kind = stored_config(weights).get("model_type")
    return kind == TWO_TOWERS or (kind != MODEL and has_texts(tensor_names(weights)))


def load_two_towers(
    path: str | Path, image: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None
) -> TwoTowers:
    """Load two towers in eval mode, on the CPU, in the weights' own dtype.

    The format is recognised by the keys: ours, big_vision's SigLIP, or SigLIP and SigLIP 2 of transformers.

    Args:
        path: as for `load_model`.
        image, text: fields of ViTConfig and TextConfig that replace stored ones, or that the weights do not
            determine, such as `heads` (by default width // 64) and `pad_id`.

    Raises:
        FileNotFoundError, ImportError: as for `load_model`.
        ValueError: weights and configuration do not fit, or there is no text tower; names the file.
    """
    weights = find_weights(Path(path))
    tensors, stored = read_tensors(weights), stored_config(weights)
    origin: dict[str, str] = {}
    try:
        if stored.get("model_type") == TWO_TOWERS:
            fields = own_fields(stored, weights)
        else:
            tensors, fields, origin = translate_towers(tensors, stored)
        fields = fields | {
            "image": fields["image"] | dict(image or {}),
            "text": fields["text"] | dict(text or {}),
        }
        config = TwoTowersConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from None
    model = TwoTowers(config).to(next(iter(tensors.values())).dtype)
    fill(model, tensors, origin, weights)
    return model.eval()


def find_own_tokenizer(path: str | Path) -> tuple[Tokenizer, Path] | None:
    """The tokeniser beside a model's weights, and its file; None if there is none.

    Args:
        path: of the model, as for `load_model`.

    Raises:
        FileNotFoundError, ImportError, ValueError: as for `load_model` and `load_tokenizer`.
    """
    folder = find_weights(Path(path)).parent
    file = next((folder / name for name in FILES if (folder / name).exists()), None)
    return None if file is None else (load_tokenizer(file), file)
