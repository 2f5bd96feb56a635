"""timm .safetensors: vit_*, deit3_*, flexivit_* (VisionTransformer) and naflexvit_* (NaFlexVit).

Fields that the keys do not determine get timm's defaults: exact GELU, bicubic antialiased resizing of patch
embedding and position table. naflexvit_*_par_* needs pos_coords="fractional_aspect", which keys do not
determine either. `fc_norm` is a norm after pooling; blocks with `in_proj` are the parallel ones of ViT-22B.
"""

import re
from typing import Any

import torch
from torch import Tensor

from packvit.models.config import ViTConfig
from packvit.models.files.canonical import (
    Imported,
    Limits,
    check_limits,
    place_grid,
    place_patch_embed,
    place_prefix,
    rename,
)

WB = r"(weight|bias)"
BLOCK = r"blocks\.(\d+)\."
TABLE: list[tuple[str, str | None]] = [
    (r"(?:patch_embed|embeds)\.proj\." + WB, r"patch_embed.\1"),
    (r"(?:embeds\.)?pos_embed", "pos"),
    (r"embeds\.pos_embed_([yx])", r"pos_\1"),
    (r"(?:embeds\.)?cls_token", "cls"),
    (r"(?:embeds\.)?reg_token", "registers"),
    (r"norm_pre\." + WB, r"pre_norm.\1"),
    (BLOCK + r"norm([12])\." + WB, r"blocks.\1.norm\2.\3"),
    (BLOCK + r"attn\.(qkv|proj|q_norm|k_norm)\." + WB, r"blocks.\1.attn.\2.\3"),
    (BLOCK + r"ls([12])\.gamma", r"blocks.\1.scale\2"),
    (BLOCK + r"mlp\.(fc1|fc2|fc1_g|fc1_x)\." + WB, r"blocks.\1.mlp.\2.\3"),
    (BLOCK + r"in_norm\." + WB, r"blocks.\1.norm1.\2"),
    (BLOCK + r"in_proj\." + WB, r"blocks.\1.in_proj.\2"),
    (BLOCK + r"mlp_bias", r"blocks.\1.mlp.fc1.bias"),
    (BLOCK + r"([qk]_norm)\." + WB, r"blocks.\1.attn.\2.\3"),
    (BLOCK + r"attn_out_proj\." + WB, r"blocks.\1.attn.proj.\2"),
    (BLOCK + r"mlp_out_proj\." + WB, r"blocks.\1.mlp.fc2.\2"),
    (BLOCK + r"ls\.gamma", r"blocks.\1.scale1"),
    (r"norm\." + WB, r"norm.\1"),
    (r"fc_norm\." + WB, r"fc_norm.\1"),
    (r"attn_pool\.latent", "pool.attention.probe"),
    (r"attn_pool\.(q|kv|proj|norm|mlp\.fc1|mlp\.fc2)\." + WB, r"pool.attention.\1.\2"),
    (r"head\." + WB, r"head.\1"),
]
LIMITS: Limits = {
    "biases": (True,),
    "qkv_biases": (True,),
    "parallel": (False,),
    "pool": ("mean", "map", "cls"),
    "rep_size": (0,),
    "patch_operator": ("bicubic_antialias",),
    "pos_embed": ("grid_2d", "factorized", "none"),
    "rope_coords": ("none",),
}
LIMITS_OF_POS: dict[str, Limits] = {
    "grid_2d": {
        "pos_coords": ("fractional", "fractional_aspect"),
        "pos_resize": ("bilinear_antialias", "bicubic_antialias"),
    },
    "factorized": {
        "pos_coords": ("fractional", "fractional_aspect"),
        "pos_table": ("learned",),
        "pos_combine": ("sum",),
    },
}


def matches(keys: list[str]) -> bool:
    """Whether these are the keys of a timm Vision Transformer."""
    return "patch_embed.proj.weight" in keys or "embeds.proj.weight" in keys


def convert(tensors: dict[str, Tensor]) -> Imported:
    """Keys and tensors of a file to our names.

    Raises:
        ValueError: unknown keys or impossible shapes, by name.
    """
    out = rename(tensors, TABLE)
    place_patch_embed(out)
    for kind in ("weight", "bias"):
        out.fuse(f"mlp.fc1.{kind}", (f"mlp.fc1_g.{kind}", f"mlp.fc1_x.{kind}"))
    _split_parallel(out)
    cls, registers = out.pop("cls"), out.pop("registers", 3)
    with_cls, with_registers = int(cls is not None), 0 if registers is None else registers.shape[1]
    prefix_pos = _place_position(out, with_cls, with_cls + with_registers)
    place_prefix(out, cls, registers, prefix_pos)
    probe = out.pop("pool.attention.probe")
    if probe is not None:
        out.put("pool.attention.probe", probe.flatten(), "attn_pool.latent")
    fc_norm = [name for name in out.state if name.startswith("fc_norm.")]
    if fc_norm and "norm.weight" in out.state:
        raise ValueError("both norm and fc_norm: a norm before and one after pooling are not supported")
    for name in fc_norm:
        out.put(name.removeprefix("fc_"), out.state.pop(name), out.origin.pop(name))
    pooled = "map" if probe is not None else "mean" if fc_norm or cls is None else "cls"
    out.fields |= {
        "mlp": "gelu",
        "pool": pooled,
        "last_norm": "pooled" if fc_norm else "tokens" if "norm.weight" in out.state else "none",
        "patch_operator": "bicubic_antialias",
        "pos_resize": "bicubic_antialias",
    }
    if "pre_norm.bias" in out.state:
        out.fields["norm_eps"] = 1e-5  # only CLIP's towers have a LayerNorm there
    if probe is not None and "embeds.proj.weight" in tensors and "prefix" not in out.state:
        # naflexvit_*_siglip are the ones with attention pooling and no registers.
        out.fields |= {"mlp": "gelu_tanh", "pos_resize": "bilinear_antialias"}
    return out


def sidecar_fields(stored: dict[str, Any]) -> dict[str, Any]:
    """ViTConfig fields that timm's config.json determines and the weights do not."""
    pretrained = stored.get("pretrained_cfg", {})
    return {f"image_{key}": tuple(pretrained[key]) for key in ("mean", "std") if key in pretrained}


def _place_position(out: Imported, *prefix: int) -> Tensor | None:
    """The position embedding to its place; returns that of the prefix tokens if the table has them."""
    y, x, pos = out.pop("pos_y", 3), out.pop("pos_x", 3), out.pop("pos")
    if y is not None and x is not None:
        out.put("pos_embed.table_y", y[0], "embeds.pos_embed_y")
        out.put("pos_embed.table_x", x[0], "embeds.pos_embed_x")
        # Whether the aspect ratio is kept is not in the weights; naflexvit_*_parfac_* keeps it.
        out.fields |= {"pos_embed": "factorized", "pos_coords": "fractional_aspect"}
        return None
    if pos is None:
        out.fields["pos_embed"] = "none"
        return None
    if pos.ndim == 4:
        out.put("pos_embed.table", pos[0], "embeds.pos_embed")
        out.fields["pos_embed"] = "grid_2d"
        return None
    return place_grid(out, pos, "pos_embed", *prefix)


def _split_parallel(out: Imported) -> None:
    """in_proj holds [MLP hidden, q, k, v] in its rows; both branches share one layer scale."""
    for name in [n for n in out.state if re.fullmatch(r"blocks\.\d+\.in_proj\.(weight|bias)", n)]:
        block, kind = name.split("in_proj.")
        origin, tensor = out.origin[name], out.pop(name)
        proj = out.state.get(f"{block}attn.proj.weight")
        if tensor is None or proj is None or tensor.shape[0] <= 3 * proj.shape[0]:
            raise ValueError(f"{origin} does not hold an MLP and three projections")
        hidden = tensor.shape[0] - 3 * proj.shape[0]
        out.put(f"{block}mlp.fc1.{kind}", tensor[:hidden], origin)
        out.put(f"{block}attn.qkv.{kind}", tensor[hidden:], origin)
        scale = out.state.get(f"{block}scale1")
        if scale is not None:
            out.put(f"{block}scale2", torch.clone(scale), origin)


def export(state: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Our weights under timm's names: the inverse of `convert`.

    A model that pools its cls token and has one square table gets the names of vit_*, whose table begins with
    a position for each cls or register token. These are zeros, because packvit's are part of the tokens.
    Every other model gets the names of naflexvit_*. `timm_call` returns the call that makes timm's model.

    Raises:
        ValueError: timm cannot express a field.
    """
    limits = {**LIMITS, **LIMITS_OF_POS.get(config.pos_embed, {})}
    limits["qk_norm"] = ("none", config.norm)  # one class for all norms
    if config.pool == "map":
        # One activation for the blocks and the pooling, which is not gated.
        limits["mlp"] = ("gelu", "gelu_tanh", "quick_gelu")
    check_limits("timm", config, limits)
    if config.pre_norm:
        state = dict(state)
        if state.pop("patch_embed.bias").any():
            raise ValueError("timm cannot express pre_norm=True beside a bias of the patch embedding")
    plain = is_plain(config)
    embeds = "" if plain else "embeds."
    names = [
        (r"patch_embed\.", "patch_embed.proj." if plain else "embeds.proj."),
        (r"pre_norm\.", "norm_pre."),
        (r"pos_embed\.table_([yx])", r"embeds.pos_embed_\1"),
        (r"pos_embed\.table", embeds + "pos_embed"),
        (r"(blocks\.\d+\.)scale([12])", r"\1ls\2.gamma"),
        (r"norm\.", "fc_norm." if config.last_norm == "pooled" else "norm."),
        (r"pool\.attention\.probe", "attn_pool.latent"),
        (r"pool\.attention\.", "attn_pool."),
    ]
    out = {}
    for name, tensor in state.items():
        if name == "prefix":
            cls, registers = tensor[None].tensor_split([int(config.cls)], 1)
            tokens = {"cls_token": cls, "reg_token": registers}
            out |= {embeds + key: token for key, token in tokens.items() if token.shape[1]}
            continue
        pattern, target = next((row for row in names if re.match(row[0], name)), ("", ""))
        out[re.sub("^" + pattern, target, name)] = _timm_layout(name, tensor, plain)
    if plain:
        own = out["pos_embed"]
        out["pos_embed"] = torch.cat([own.new_zeros(1, config.prefix, own.shape[2]), own], 1)
    return out


def is_plain(config: ViTConfig) -> bool:
    """Whether a model is one of timm's vit_*, not a naflexvit_*."""
    square = config.pos_embed == "grid_2d" and config.pos_grid[0] == config.pos_grid[1]
    return config.pool == "cls" and square and config.pos_coords == "fractional"


def _timm_layout(name: str, tensor: Tensor, plain: bool) -> Tensor:
    """One of our tensors in the shape of vit_* (`plain`) or naflexvit_*."""
    if name == "patch_embed.weight":
        return tensor.permute(3, 2, 0, 1) if plain else tensor.flatten(0, 2).T
    if name.startswith("pos_embed."):
        return tensor.flatten(0, 1)[None] if plain else tensor[None]
    return tensor[None, None] if name == "pool.attention.probe" else tensor
