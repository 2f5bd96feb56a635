"""From foreign names to ours: a table of patterns renames keys, and shapes determine the architecture.

Each source (big_vision, timm, Hugging Face) provides a table and a few lines for tensors with another layout;
everything that the weights determine about the architecture is inferred here, once, from our own names.
"""

import re
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from packvit.models.config import ViTConfig
from packvit.models.presets import PRESETS

Limits = dict[str, tuple[Any, ...]]


@dataclass
class Imported:
    """Weights under our names.

    Args:
        state: our name -> tensor.
        origin: our name -> the name in the file, for messages.
        fields: ViTConfig fields that the source implies and shapes do not determine.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, tensor: Tensor, origin: str) -> None:
        """Add one tensor."""
        self.state[name], self.origin[name] = tensor, origin

    def pop(self, name: str, ndim: int | None = None) -> Tensor | None:
        """Take a tensor out; None if there is none.

        Raises:
            ValueError: it does not have `ndim` dimensions.
        """
        tensor = self.state.pop(name, None)
        origin = self.origin.pop(name, name)
        if tensor is not None and ndim is not None and tensor.ndim != ndim:
            raise ValueError(f"{origin} has shape {tuple(tensor.shape)}, expected {ndim} dimensions")
        return tensor

    def fuse(self, target: str, parts: tuple[str, ...]) -> None:
        """Concatenate rows of `<prefix><part>` into `<prefix><target>` wherever the first part exists.

        Raises:
            ValueError: a part is missing or its rows differ in length.
        """
        for first in [name for name in self.state if name.endswith(parts[0])]:
            prefix = first.removesuffix(parts[0])
            names = [prefix + part for part in parts]
            origins = [self.origin.get(n, n) for n in names]
            tensors = [self.pop(n) for n in names]
            present = [t for t in tensors if t is not None]
            if len(present) != len(names) or len({t.shape[1:] for t in present}) != 1:
                shapes = [None if t is None else tuple(t.shape) for t in tensors]
                raise ValueError(f"{', '.join(origins)} do not belong together: shapes {shapes}")
            self.put(prefix + target, torch.cat(present), ", ".join(origins))


def check_limits(target: str, config: ViTConfig, limits: Limits) -> None:
    """Refuse a model that a foreign format cannot express.

    Args:
        target: the format's name.
        config: the model's configuration.
        limits: ViTConfig field -> the values that the format can express.

    Raises:
        ValueError: names every field with another value, and what it could be.
    """
    beyond = [
        f"{name}={getattr(config, name)!r} (only {' or '.join(map(repr, values))})"
        for name, values in limits.items()
        if getattr(config, name) not in values
    ]
    if beyond:
        raise ValueError(f"{target} cannot express {', '.join(beyond)}")


def rename(tensors: dict[str, Tensor], table: list[tuple[str, str | None]]) -> Imported:
    """Rename every key by the first pattern that matches it whole; None drops it.

    Raises:
        ValueError: keys that no pattern matches, by name.
    """
    out = Imported()
    unknown = []
    for key, tensor in tensors.items():
        for pattern, target in table:
            match = re.fullmatch(pattern, key)
            if match:
                if target is not None:
                    out.put(match.expand(target), tensor, key)
                break
        else:
            unknown.append(key)
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise ValueError(f"unknown keys: {', '.join(sorted(unknown)[:8])}{more}")
    return out


def place_patch_embed(out: Imported) -> None:
    """Bring patch_embed.weight to [P, P, 3, D] from a convolution's [D, 3, P, P] or a linear layer's
    [D, P*P*3], whose columns are (row, col, channel)."""
    origin = out.origin.get("patch_embed.weight", "patch_embed.weight")
    weight = out.pop("patch_embed.weight")
    if weight is None:
        raise ValueError("there is no patch embedding")
    side = isqrt(weight.shape[1] // 3)
    if weight.ndim == 4 and weight.shape[1] == 3 and weight.shape[2] == weight.shape[3]:
        weight = weight.permute(2, 3, 1, 0)
    elif weight.ndim == 2 and weight.shape[1] == side * side * 3:
        weight = weight.T.reshape(side, side, 3, weight.shape[0])
    else:
        raise ValueError(
            f"{origin} has shape {tuple(weight.shape)}, which is not an embedding of square RGB patches"
        )
    out.put("patch_embed.weight", weight, origin)


def place_prefix(out: Imported, cls: Tensor | None, registers: Tensor | None, pos: Tensor | None) -> None:
    """Learned tokens [.., D] to `prefix`, cls first; their position embeddings [n, D], if any, are added."""
    out.fields["cls"] = cls is not None
    parts = [t.reshape(-1, t.shape[-1]) for t in (cls, registers) if t is not None]
    if parts:
        prefix = torch.cat(parts)
        if pos is not None:
            prefix[: len(pos)] += pos
        out.put("prefix", prefix, "cls and register tokens")


def place_grid(out: Imported, table: Tensor, origin: str, *extra: int) -> Tensor | None:
    """A table [.., n, D] of a square grid to `pos_embed.table`.

    Args:
        table, origin: the table and its name in the file.
        extra: possible numbers of token embeddings before those of the grid.

    Returns:
        These embeddings [extra, D], or None.

    Raises:
        ValueError: neither n nor n minus any of `extra` is a square.
    """
    table = table.reshape(-1, table.shape[-1])
    for skip in (0, *extra):
        side = isqrt(max(0, len(table) - skip))
        if side and side * side == len(table) - skip:
            out.put("pos_embed.table", table[skip:].reshape(side, side, -1), origin)
            out.fields["pos_embed"] = "grid_2d"
            return table[:skip] if skip else None
    raise ValueError(f"{origin} has {len(table)} positions, which do not form a square grid")


def infer_fields(out: Imported) -> dict[str, Any]:
    """ViTConfig fields that names and shapes determine, together with those that the source implies."""
    state = out.state
    for name in ("patch_embed.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"):
        if name not in state:
            raise ValueError(f"there is no {name}")
    width = state["patch_embed.weight"].shape[-1]
    hidden = state["blocks.0.mlp.fc2.weight"].shape[-1]
    prefix = state["prefix"].shape[0] if "prefix" in state else 0
    fields: dict[str, Any] = {
        "width": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        "heads": next((p["heads"] for p in PRESETS.values() if p["width"] == width), max(1, width // 64)),
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        "mlp_ratio": hidden / width,
        "biases": any(name.startswith("blocks.") and name.endswith(".bias") for name in state),
        "norm": _kind_of_norm(state, "blocks.0.norm1"),
        "qk_norm": _kind_of_norm(state, "blocks.0.attn.q_norm"),
        "layer_scale": 1.0 if "blocks.0.scale1" in state else 0.0,
        "parallel": "blocks.0.norm2.weight" not in state,
        "pre_norm": "pre_norm.weight" in state,
        "registers": prefix - int(out.fields.get("cls", False)),
        "rep_size": state["rep.weight"].shape[0] if "rep.weight" in state else 0,
        "patch_buffer": state["patch_embed.weight"].shape[0],
        **out.fields,
    }
    if state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * hidden:
        fields["mlp"] = "swiglu"
    if "pos_embed.table" in state:
        fields["pos_grid"] = tuple(state["pos_embed.table"].shape[:2])
    elif "pos_embed.table_y" in state and "pos_embed.table_x" in state:
        fields["pos_grid"] = (state["pos_embed.table_y"].shape[0], state["pos_embed.table_x"].shape[0])
    return fields


def _kind_of_norm(state: dict[str, Tensor], name: str) -> str:
    """A norm without bias is taken for RMSNorm, which is what the sources use then."""
    if name + ".weight" not in state:
        return "none"
    return "layer" if name + ".bias" in state else "rms"


def fill_absent_biases(out: Imported) -> None:
    """Give a layer without a bias, if others have one, a bias of zeros."""
    layers = r"patch_embed|blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12])|pool\.attention\.(?:q|kv|proj)"
    if not any(re.fullmatch(rf"(?:{layers})\.bias", name) and "blocks" in name for name in out.state):
        layers = "patch_embed"
    for name in [n for n in out.state if re.fullmatch(rf"(?:{layers})\.weight", n)]:
        bias = name.removesuffix("weight") + "bias"
        if bias not in out.state:
            weight = out.state[name]
            rows = weight.shape[-1] if name == "patch_embed.weight" else weight.shape[0]
            out.put(bias, torch.zeros(rows, dtype=weight.dtype), "no bias")
