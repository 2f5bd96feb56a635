"""big_vision .npz: FlexiViT, plain ViT, NaFlex, and the older vision_transformer (AugReg) naming of the same.

Flax kernels are [in, ..., out] and attention's keep their heads apart; blocks may be stacked along a
leading axis by nn.scan. NaFlex embeds patches that are flat already, and its table of positions has rows and
columns. GELU is the tanh approximation; the patch embedding is resized by plain bilinear (FlexiViT 3.4), the
position table by bilinear with antialias, as jax.image.resize does.
"""

import re
from math import isqrt

from torch import Tensor

from packvit.models.config import ViTConfig
from packvit.models.files.canonical import (
    Imported,
    Limits,
    check_limits,
    place_grid,
    place_prefix,
    rename,
)

PREFIXES = ("opt/target/", "params/img/", "img/", "params/", "")
BLOCK = r"Transformer/encoderblock_(\d+)/"
MHA = r"MultiHeadDotProductAttention_\d/"
TABLE: list[tuple[str, str | None]] = [
    (r"embedding/(kernel|bias)", r"patch_embed.\1"),
    (r"(?:Transformer/posembed_input/)?pos_embedding", "pos"),
    (r"cls", "cls"),
    (BLOCK + r"LayerNorm_0/(scale|bias)", r"blocks.\1.norm1.\2"),
    (BLOCK + r"LayerNorm_[12]/(scale|bias)", r"blocks.\1.norm2.\2"),
    (BLOCK + MHA + r"(query|key|value)/(kernel|bias)", r"blocks.\1.attn.\2.\3"),
    (BLOCK + MHA + r"out/(kernel|bias)", r"blocks.\1.attn.proj.\2"),
    (BLOCK + r"MlpBlock_\d/Dense_0/(kernel|bias)", r"blocks.\1.mlp.fc1.\2"),
    (BLOCK + r"MlpBlock_\d/Dense_1/(kernel|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"Transformer/encoder_norm/(scale|bias)", r"norm.\1"),
    (r"MAPHead_0/probe", "pool.attention.probe"),
    (r"MAPHead_0/LayerNorm_0/(scale|bias)", r"pool.attention.norm.\1"),
    (r"MAPHead_0/" + MHA + r"(query|key|value)/(kernel|bias)", r"pool.attention.\1.\2"),
    (r"MAPHead_0/" + MHA + r"out/(kernel|bias)", r"pool.attention.proj.\1"),
    (r"MAPHead_0/MlpBlock_0/Dense_0/(kernel|bias)", r"pool.attention.mlp.fc1.\1"),
    (r"MAPHead_0/MlpBlock_0/Dense_1/(kernel|bias)", r"pool.attention.mlp.fc2.\1"),
    (r"pre_logits/(kernel|bias)", r"rep.\1"),
    (r"head/(kernel|bias)", r"head.\1"),
]
# The way back: our layers, with fused projections apart, to big_vision's.
EXPORT_BLOCK = r"Transformer/encoderblock_\1/"
EXPORT_TABLE = [
    (r"patch_embed", "embedding"),
    (r"blocks\.(\d+)\.norm1", EXPORT_BLOCK + "LayerNorm_0"),
    (r"blocks\.(\d+)\.norm2", EXPORT_BLOCK + "LayerNorm_1"),
    (r"blocks\.(\d+)\.attn\.(query|key|value)", EXPORT_BLOCK + r"MultiHeadDotProductAttention_0/\2"),
    (r"blocks\.(\d+)\.attn\.proj", EXPORT_BLOCK + "MultiHeadDotProductAttention_0/out"),
    (r"blocks\.(\d+)\.mlp\.fc1", EXPORT_BLOCK + "MlpBlock_0/Dense_0"),
    (r"blocks\.(\d+)\.mlp\.fc2", EXPORT_BLOCK + "MlpBlock_0/Dense_1"),
    (r"norm", "Transformer/encoder_norm"),
    (r"pool\.attention\.norm", "MAPHead_0/LayerNorm_0"),
    (r"pool\.attention\.(query|key|value)", r"MAPHead_0/MultiHeadDotProductAttention_0/\1"),
    (r"pool\.attention\.proj", "MAPHead_0/MultiHeadDotProductAttention_0/out"),
    (r"pool\.attention\.mlp\.fc1", "MAPHead_0/MlpBlock_0/Dense_0"),
    (r"pool\.attention\.mlp\.fc2", "MAPHead_0/MlpBlock_0/Dense_1"),
    (r"rep", "pre_logits"),
    (r"head", "head"),
]
FUSED = {"qkv": ("query", "key", "value"), "kv": ("key", "value"), "q": ("query",)}
LIMITS: Limits = {
    "mlp": ("gelu_tanh",),
    "norm": ("layer",),
    "norm_eps": (1e-6,),
    "qk_norm": ("none",),
    "biases": (True,),
    "qkv_biases": (True,),
    "layer_scale": (0,),
    "parallel": (False,),
    "pre_norm": (False,),
    "registers": (0,),
    "pool": ("mean", "map", "cls"),
    "last_norm": ("tokens",),
    "patch_operator": ("bilinear",),
    "rope_coords": ("none",),
}


def matches(keys: list[str]) -> bool:
    """Whether these are the keys of a big_vision file."""
    return any(prefix + "embedding/kernel" in keys for prefix in PREFIXES)


def convert(tensors: dict[str, Tensor]) -> Imported:
    """Keys and arrays of a file to our names.

    Raises:
        ValueError: unknown keys or impossible shapes, by name.
    """
    prefix = next(p for p in PREFIXES if p + "embedding/kernel" in tensors)
    # Beside the model a file may hold an optimizer's state or a text tower.
    tensors = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    # NaFlex has one patch size and no operator of its own.
    operator = "bilinear" if tensors["embedding/kernel"].ndim == 4 else "bilinear_antialias"
    out = convert_layers(tensors, TABLE)
    pos = out.pop("pos")
    cls, cls_pos = out.pop("cls"), None
    if pos is None:
        # posemb="sincos2d" has no parameters.
        out.fields |= {"pos_embed": "factorized", "pos_table": "sinusoidal"}
        out.fields |= {"pos_coords": "absolute", "pos_combine": "stack"}
    else:
        cls_pos = place_grid(out, pos, "pos_embedding", int(cls is not None))
    place_prefix(out, cls, None, cls_pos)
    pooled = "map" if "pool.attention.probe" in out.state else "cls" if cls is not None else "mean"
    out.fields |= {"mlp": "gelu_tanh", "pool": pooled, "patch_operator": operator}
    return out


def convert_layers(tensors: dict[str, Tensor], table: list[tuple[str, str | None]]) -> Imported:
    """Flax's layers to ours; tensors that are not part of a layer keep their layout.

    Args:
        tensors: tensors of one tower, without the prefix of their names.
        table: like TABLE.

    Raises:
        ValueError: unknown keys or impossible shapes, by name.
    """
    out = rename(unstack(tensors), table)
    heads = out.state.get("blocks.0.attn.query.kernel")
    if heads is not None and heads.ndim == 3:
        out.fields["heads"] = heads.shape[1]
    for name in list(out.state):
        origin, tensor = out.origin[name], out.pop(name)
        assert tensor is not None
        out.put(
            name.replace(".kernel", ".weight").replace(".scale", ".weight"),
            _layout(name, tensor, origin),
            origin,
        )
    out.fuse("attn.qkv.weight", tuple(f"attn.{p}.weight" for p in ("query", "key", "value")))
    out.fuse("attn.qkv.bias", tuple(f"attn.{p}.bias" for p in ("query", "key", "value")))
    for kind in ("weight", "bias"):
        out.fuse(f"attention.kv.{kind}", (f"attention.key.{kind}", f"attention.value.{kind}"))
        out.fuse(f"attention.q.{kind}", (f"attention.query.{kind}",))
    return out


def unstack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Blocks stacked by nn.scan, encoderblock/x [depth, ...], to encoderblock_<i>/x [...]."""
    out = {}
    for key, tensor in tensors.items():
        head, found, tail = key.partition("Transformer/encoderblock/")
        if found:
            out |= {f"{head}Transformer/encoderblock_{i}/{tail}": t for i, t in enumerate(tensor)}
        else:
            out[key] = tensor
    return out


def _layout(name: str, tensor: Tensor, origin: str) -> Tensor:
    """Flax's layout of one tensor to ours."""
    if name == "pool.attention.probe":
        return tensor.flatten()
    if not name.endswith(".kernel"):
        # Biases of queries, keys and values keep the heads apart.
        return tensor.flatten() if name.endswith(".bias") else tensor
    if name == "patch_embed.kernel":
        side = isqrt(tensor.shape[0] // 3)
        if tensor.ndim == 2 and tensor.shape[0] == side * side * 3:
            return tensor.unflatten(0, (side, side, 3))
        if tensor.ndim != 4 or tensor.shape[0] != tensor.shape[1] or tensor.shape[2] != 3:
            raise ValueError(
                f"{origin} has shape {tuple(tensor.shape)}, expected (P, P, 3, width) or (P * P * 3, width)"
            )
        return tensor
    if tensor.ndim == 3:
        # out: [heads, head_dim, D]; query, key, value: [D, heads, head_dim]
        tensor = tensor.flatten(0, 1) if ".proj." in name else tensor.flatten(1)
    if tensor.ndim != 2:
        raise ValueError(f"{origin} has shape {tuple(tensor.shape)}, expected 2 or 3 dimensions")
    return tensor.T


def export(state: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Our weights under big_vision's names and in Flax's layouts: the inverse of `convert`.

    Raises:
        ValueError: big_vision cannot express a field.
    """
    limits = {**LIMITS, "cls": (config.pool == "cls",)}
    if config.pos_embed == "grid_2d":
        limits |= {"pos_coords": ("fractional",), "pos_resize": ("bilinear_antialias",)}
        limits |= {"pos_grid": ((config.pos_grid[0], config.pos_grid[0]),)}
    else:
        limits |= {"pos_embed": ("grid_2d", "factorized"), "pos_table": ("sinusoidal",)}
        limits |= {"pos_combine": ("stack",), "pos_coords": ("absolute",)}
    check_limits("big_vision", config, limits)
    out = {}
    for name, tensor in state.items():
        if name == "prefix":
            out["params/cls"] = tensor[None]
        elif name == "pos_embed.table":
            out["params/pos_embedding"] = tensor.flatten(0, 1)[None]
        elif name == "pool.attention.probe":
            out["params/MAPHead_0/probe"] = tensor[None, None]
        else:
            *path, layer, kind = name.split(".")
            parts = FUSED.get(layer, (layer,))
            for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
                layer = ".".join((*path, part))
                out["params/" + _flax_name(layer, kind)] = _flax_layout(layer, rows, config.heads)
    return out


def _flax_name(layer: str, kind: str) -> str:
    pattern, target = next(row for row in EXPORT_TABLE if re.fullmatch(row[0], layer))
    if kind == "weight":
        kind = "scale" if "norm" in layer else "kernel"
    return f"{re.sub(pattern, target, layer)}/{kind}"


def _flax_layout(layer: str, tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `_layout`, for a weight or a bias of one of our layers."""
    if layer == "patch_embed":
        return tensor
    if tensor.ndim == 2:
        tensor = tensor.T  # [in, out]
    if layer.endswith(("query", "key", "value")):
        return tensor.unflatten(-1, (heads, -1))
    return tensor.unflatten(0, (heads, -1)) if layer.endswith("proj") and tensor.ndim == 2 else tensor
