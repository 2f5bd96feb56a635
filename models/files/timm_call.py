"""The call that makes timm's model for a file that `packvit convert` has written."""

from typing import Any, assert_never

from packvit.models.config import ViTConfig
from packvit.models.files.timm import is_plain
from packvit.models.presets import PRESETS

# timm's names of models of patch size 16 at 224 pixels, by our names of sizes.
PLAIN = {"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base", "L": "vit_large"}
NAFLEX = "naflexvit_base_patch16_siglip"
# What these models have where a call does not say otherwise; timm drops arguments that are None.
USUAL = {
    "patch_size": 16,
    "num_classes": 1000,
    "mlp_ratio": 4.0,
    "qk_norm": False,
    "reg_tokens": 0,
    "init_values": None,
    "pre_norm": False,
    "final_norm": True,
    "norm_layer": None,
    "act_layer": "gelu",
    "mlp_layer": None,
}
USUAL_PLAIN = {**USUAL, "img_size": 224, "fc_norm": None}
USUAL_NAFLEX = {
    **USUAL,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "class_token": False,
    "global_pool": "map",
    "fc_norm": None,
    "act_layer": "gelu_tanh",
    "pos_embed": "learned",
    "pos_embed_grid_size": (16, 16),
    "pos_embed_interp_mode": "bilinear",
    "pos_embed_ar_preserving": False,
}


class Code(str):
    """Text that is put into a call unchanged, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def timm_call(config: ViTConfig, path: str) -> str:
    """`timm.create_model(...)` with everything that timm needs to load a model's file.

    Args:
        config: configuration of a model that `export_model` could write for timm.
        path: path of the file.
    """
    fields: dict[str, Any] = {
        "patch_size": config.patch_buffer,
        "num_classes": config.num_classes,
        "mlp_ratio": config.mlp_ratio,
        "qk_norm": config.qk_norm != "none",
        "reg_tokens": config.registers,
        "init_values": config.layer_scale or None,
        "pre_norm": config.pre_norm,
        "final_norm": config.last_norm != "none",
        "norm_layer": norm_layer(config),
        **mlp_layers(config),
    }
    size = {"embed_dim": config.width, "depth": config.depth, "num_heads": config.heads}
    if is_plain(config):
        name = next((n for n in PLAIN if sizes_of(n) == tuple(size.values())), None)
        fields |= {} if name else size
        fields |= {"img_size": config.pos_grid[0] * config.patch_buffer}
        fields |= {"fc_norm": True} if config.last_norm == "pooled" else {}
        name, usual = f"{PLAIN[name or 'B']}_patch16_224", USUAL_PLAIN
    else:
        fields |= {**size, **naflex_fields(config)}
        name, usual = NAFLEX, USUAL_NAFLEX
    given = [f"{key}={value!r}" for key, value in fields.items() if usual.get(key, Code()) != value]
    return f"timm.create_model({', '.join([repr(name), *given, f'checkpoint_path={path!r}'])})"


def sizes_of(name: str) -> tuple[Any, ...]:
    """Width, depth and heads of a size."""
    return tuple(PRESETS[name][field] for field in ("width", "depth", "heads"))


def naflex_fields(config: ViTConfig) -> dict[str, Any]:
    """Arguments that only naflexvit_* have: several kinds of pooling, and position tables of any shape."""
    fields: dict[str, Any] = {
        "class_token": config.cls,
        "global_pool": {"mean": "avg", "map": "map", "cls": "token"}[config.pool],
        "fc_norm": config.last_norm == "pooled",
        "final_norm": config.last_norm != "none",
    }
    match config.pos_embed:
        case "grid_2d" | "factorized":
            fields["pos_embed"] = "learned" if config.pos_embed == "grid_2d" else "factorized"
            fields["pos_embed_grid_size"] = config.pos_grid
            fields["pos_embed_interp_mode"] = config.pos_resize.removesuffix("_antialias")
            fields["pos_embed_ar_preserving"] = config.pos_coords == "fractional_aspect"
        case "none":
            fields["pos_embed"] = "none"
        case "rope_2d":
            raise ValueError("timm cannot express pos_embed='rope_2d'")
        case _ as unknown:
            assert_never(unknown)
    return fields


def norm_layer(config: ViTConfig) -> Code | None:
    """The class of all norms; None for the usual one."""
    if config.norm == "layer" and config.norm_eps == 1e-6:
        return None
    kind = {"layer": "torch.nn.LayerNorm", "rms": "timm.layers.RmsNorm"}[config.norm]
    return Code(f"functools.partial({kind}, eps={config.norm_eps})")


def mlp_layers(config: ViTConfig) -> dict[str, Any]:
    """The activation and the class of the MLPs."""
    match config.mlp:
        case "gelu":
            return {"act_layer": "gelu"}
        case "gelu_tanh" | "quick_gelu":
            return {"act_layer": config.mlp}
        case "swiglu":
            # Its ratio counts the units of the gate as well.
            layer = Code("timm.layers.SwiGLUPacked")
            return {"mlp_layer": layer, "act_layer": "silu", "mlp_ratio": 2 * config.mlp_ratio}
        case _ as unknown:
            assert_never(unknown)
