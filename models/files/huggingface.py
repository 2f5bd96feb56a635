"""Hugging Face transformers .safetensors: ViT, DINOv2 (with registers) and SigLIP / SigLIP 2 vision models.

Names changed between versions of transformers; both generations are read. Queries, keys and values are
separate; the position table of ViT and DINOv2 starts with the position of the cls token.
"""

import re
from typing import Any

from torch import Tensor

from packvit.models.files.canonical import (
    Imported,
    place_grid,
    place_patch_embed,
    place_prefix,
    rename,
)

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
WB = r"(weight|bias)"
TOWER = r"(?:vit\.|dinov2\.|dinov2_with_registers\.|vision_model\.)*"
BLOCK = TOWER + r"(?:encoder\.)?layers?\.(\d+)\."
TABLE: list[tuple[str, str | None]] = [
    (TOWER + r"embeddings\.(?:patch_embeddings\.projection|patch_embedding)\." + WB, r"patch_embed.\1"),
    (TOWER + r"embeddings\.(?:position_embeddings|position_embedding\.weight)", "pos"),
    (TOWER + r"embeddings\.cls_token", "cls"),
    (TOWER + r"embeddings\.register_tokens", "registers"),
    (TOWER + r"embeddings\.(?:mask_token|position_ids)", None),
    (BLOCK + r"(?:layernorm_before|norm1|layer_norm1)\." + WB, r"blocks.\1.norm1.\2"),
    (BLOCK + r"(?:layernorm_after|norm2|layer_norm2)\." + WB, r"blocks.\1.norm2.\2"),
    (BLOCK + r"attention\.attention\.(query|key|value)\." + WB, r"blocks.\1.attn.\2.\3"),
    (BLOCK + r"(?:attention|self_attn)\.q_proj\." + WB, r"blocks.\1.attn.query.\2"),
    (BLOCK + r"(?:attention|self_attn)\.k_proj\." + WB, r"blocks.\1.attn.key.\2"),
    (BLOCK + r"(?:attention|self_attn)\.v_proj\." + WB, r"blocks.\1.attn.value.\2"),
    (
        BLOCK + r"(?:attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\." + WB,
        r"blocks.\1.attn.proj.\2",
    ),
    (BLOCK + r"(?:layer_scale|ls)([12])\.(?:lambda1|gamma)", r"blocks.\1.scale\2"),
    (BLOCK + r"(?:mlp\.fc1|intermediate\.dense|mlp\.weights_in)\." + WB, r"blocks.\1.mlp.fc1.\2"),
    (BLOCK + r"(?:mlp\.fc2|output\.dense|mlp\.weights_out|mlp\.down_proj)\." + WB, r"blocks.\1.mlp.fc2.\2"),
    (BLOCK + r"mlp\.(gate|up)_proj\." + WB, r"blocks.\1.mlp.\2.\3"),
    (TOWER + r"(?:layernorm|post_layernorm)\." + WB, r"norm.\1"),
    (TOWER + r"pooler\.dense\." + WB, r"rep.\1"),
    (TOWER + r"head\.probe", "pool.attention.probe"),
    (TOWER + r"head\.attention\.in_proj_" + WB, r"pool.attention.in_proj.\1"),
    (TOWER + r"head\.attention\.out_proj\." + WB, r"pool.attention.proj.\1"),
    (TOWER + r"head\.layernorm\." + WB, r"pool.attention.norm.\1"),
    (TOWER + r"head\.mlp\.(fc1|fc2)\." + WB, r"pool.attention.mlp.\1.\2"),
    (r"classifier\." + WB, r"head.\1"),
    (r"text_model\..*|logit_scale|logit_bias", None),
]


def matches(keys: list[str]) -> bool:
    """Whether these are the keys of one of the vision models above."""
    pattern = re.compile(TOWER + r"embeddings\.(patch_embeddings\.projection|patch_embedding)\.weight")
    return any(pattern.fullmatch(key) for key in keys)


def convert(tensors: dict[str, Tensor]) -> Imported:
    """Keys and tensors of a file to our names.

    Raises:
        ValueError: unknown keys or impossible shapes, by name.
    """
    siglip = any("embeddings.position_embedding.weight" in key for key in tensors)
    vit = any("layernorm_before" in key for key in tensors)
    out = rename(tensors, TABLE)
    patch = out.state.get("patch_embed.weight")
    linear_patches = patch is not None and patch.ndim == 2  # SigLIP 2 takes patches, the others pixels
    place_patch_embed(out)
    for kind in ("weight", "bias"):
        out.fuse(f"attn.qkv.{kind}", tuple(f"attn.{p}.{kind}" for p in ("query", "key", "value")))
        out.fuse(f"mlp.fc1.{kind}", (f"mlp.gate.{kind}", f"mlp.up.{kind}"))
    cls, registers, pos = out.pop("cls"), out.pop("registers"), out.pop("pos")
    if pos is None:
        raise ValueError("there is no position embedding")
    cls_pos = place_grid(out, pos, "embeddings.position_embeddings", int(cls is not None))
    place_prefix(out, cls, registers, cls_pos)
    head = out.state.get("head.weight")
    if head is not None:
        # SigLIP's classifiers read the mean of the patch tokens, past the pooling that came with the tower.
        for name in [n for n in out.state if n.startswith("pool.attention.")]:
            out.pop(name)
    pooled = _place_map_head(out)
    if cls is not None:
        width = out.state["patch_embed.weight"].shape[-1]
        pooled = "cls_mean" if head is not None and head.shape[1] == 2 * width else "cls"
    resize = "bicubic" if registers is None else "bicubic_antialias"
    if siglip and linear_patches:
        resize = "bilinear_antialias"
    out.fields |= {
        "mlp": "gelu_tanh" if siglip else "gelu",
        "pool": pooled,
        "norm_eps": 1e-12 if vit else 1e-6,
        "patch_operator": "bilinear_antialias",
        "pos_resize": resize,
    }
    return out


def sidecar_fields(stored: dict[str, Any]) -> dict[str, Any]:
    """ViTConfig fields that transformers' config.json and preprocessor determine and the weights do not.

    Raises:
        ValueError: an activation that no ViTConfig has.
    """
    fields: dict[str, Any] = {k: tuple(stored[k]) for k in ("image_mean", "image_std") if k in stored}
    stored = stored.get("vision_config", stored)
    if "num_attention_heads" in stored:
        fields["heads"] = stored["num_attention_heads"]
    if "layer_norm_eps" in stored:
        fields["norm_eps"] = stored["layer_norm_eps"]
    if "hidden_act" in stored and not stored.get("use_swiglu_ffn"):
        if stored["hidden_act"] not in ACTIVATIONS:
            raise ValueError(f"hidden_act={stored['hidden_act']!r} is not one of {', '.join(ACTIVATIONS)}")
        fields["mlp"] = ACTIVATIONS[stored["hidden_act"]]
    return fields


def _place_map_head(out: Imported) -> str:
    """torch.nn.MultiheadAttention's fused rows [q, k, v] to q and kv; returns the kind of pooling."""
    probe = out.pop("pool.attention.probe")
    if probe is None:
        return "mean"
    out.put("pool.attention.probe", probe.flatten(), "head.probe")
    for kind in ("weight", "bias"):
        fused = out.pop(f"pool.attention.in_proj.{kind}")
        if fused is None or fused.shape[0] % 3:
            raise ValueError(f"head.attention.in_proj_{kind} does not hold three projections")
        width = fused.shape[0] // 3
        out.put(f"pool.attention.q.{kind}", fused[:width], f"head.attention.in_proj_{kind}")
        out.put(f"pool.attention.kv.{kind}", fused[width:], f"head.attention.in_proj_{kind}")
    return "map"
