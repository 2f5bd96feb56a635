"""Model sizes by name, from Ti (DeiT) over S, B, L (ViT), M (timm) and So400m (arXiv 2305.13035) to g and G
(arXiv 2106.04560)."""

from typing import Any

from packvit.models.config import ViTConfig

PRESETS: dict[str, dict[str, Any]] = {
    "Ti": {"width": 192, "depth": 12, "heads": 3},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "M": {"width": 512, "depth": 12, "heads": 8},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "So400m": {"width": 1152, "depth": 27, "heads": 16, "mlp_ratio": 4304 / 1152},
    "H": {"width": 1280, "depth": 32, "heads": 16},
    "g": {"width": 1408, "depth": 40, "heads": 16, "mlp_ratio": 6144 / 1408},
    "G": {"width": 1664, "depth": 48, "heads": 16, "mlp_ratio": 8192 / 1664},
}


def preset(name: str, **fields: Any) -> ViTConfig:
    """The ViTConfig of a size, with `fields` replaced.

    Raises:
        ValueError: there is no such size or field.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
    return ViTConfig.from_dict({**PRESETS[name], **fields})
