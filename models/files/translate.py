"""Other people's weights, translated to ours."""

from typing import Any

from torch import Tensor

from packvit.models.files import big_vision, huggingface, timm
from packvit.models.files.canonical import fill_absent_biases, infer_fields

FORMATS = (big_vision, timm, huggingface)


def translate(
    tensors: dict[str, Tensor], stored: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Foreign weights to ours.

    Args:
        tensors: all tensors of a file.
        stored: the config.json beside it, or empty.

    Returns:
        Our state dict, ViTConfig fields, and for each of our names the name in the file.

    Raises:
        ValueError: the format is unknown, or keys or shapes are not possible; names them.
    """
    keys = list(tensors)
    source = next((s for s in FORMATS if s.matches(keys)), None)
    if source is None:
        some = ", ".join(sorted(keys)[:4]) or "none"
        raise ValueError(f"neither packvit, big_vision, timm nor Hugging Face keys (such as {some})")
    out = source.convert(tensors)
    fill_absent_biases(out)
    if source is not big_vision:
        out.fields |= source.sidecar_fields(stored)
    return out.state, infer_fields(out), out.origin
