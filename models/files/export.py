"""Models to other people's files: big_vision's .npz and timm's .safetensors."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from packvit.common.tensors import save_tensors
from packvit.models.config import ViTConfig
from packvit.models.files import big_vision, timm
from packvit.models.files.translate import translate
from packvit.models.vit import PackedViT

# Told by shapes, or of no account to the numbers of a trained model.
NEVER_ASKED = ("mlp_ratio", "layer_scale", "drop_path", "checkpoint_every")


def export_model(model: PackedViT, path: str | Path) -> dict[str, Any]:
    """Write a model under the names of big_vision (.npz) or timm (.safetensors).

    Args:
        model: a model with an architecture that the format can express.
        path: its suffix chooses the format; folders above it are created if needed.

    Returns:
        The ViTConfig fields that the file does not determine: load_model(path, **fields) is the same model.

    Raises:
        ValueError: the suffix is unknown, or the format cannot express a field; names it and its choices.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{path} ends neither in .npz, for big_vision, nor in .safetensors, for timm")
    target = big_vision if path.suffix == ".npz" else timm
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors = {k: t.contiguous() for k, t in target.export(state, model.config).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if target is big_vision:
        # NumPy has no bfloat16.
        arrays = {k: t.to(torch.promote_types(t.dtype, torch.float32)).numpy() for k, t in tensors.items()}
        np.savez(path, allow_pickle=False, **arrays)
    else:
        save_tensors(tensors, path)
    own, told = model.config.to_dict(), ViTConfig().to_dict() | translate(tensors, {})[1]
    return {name: own[name] for name in own if name not in NEVER_ASKED and own[name] != told[name]}
