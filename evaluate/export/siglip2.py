"""A folder that Hugging Face transformers loads as Siglip2VisionModel, if the architecture allows it.

That model takes patches of one size and the grid of each image, as NaFlex processors return them. It returns
tokens and their attention pooling, packvit's features. It has no classifier.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from packvit.common.optional import need
from packvit.common.tensors import save_tensors
from packvit.data import pack_images
from packvit.evaluate.export.layers import plain_copy
from packvit.evaluate.export.verify import Outputs, expected_outputs, largest_difference, random_images
from packvit.models import PackedViT, ViTConfig
from packvit.models.files.canonical import Limits, check_limits
from packvit.models.files.huggingface import ACTIVATIONS

LIMITS: Limits = {
    "pool": ("map",),
    "last_norm": ("tokens",),
    "rep_size": (0,),
    "cls": (False,),
    "registers": (0,),
    "pre_norm": (False,),
    "mlp": ("gelu_tanh", "gelu", "quick_gelu"),
    "qk_norm": ("none",),
    "biases": (True,),
    "norm": ("layer",),
    "layer_scale": (0.0,),
    "parallel": (False,),
    "pos_embed": ("grid_2d",),
    "pos_coords": ("fractional",),
    "pos_resize": ("bilinear_antialias",),
    "rope_coords": ("none",),
}
NAMES = [  # patterns of our names and theirs, the first that fits
    (r"blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"patch_embed\.", "embeddings.patch_embedding."),
    (r"pos_embed\.table", "embeddings.position_embedding.weight"),
    (r"norm\.", "post_layernorm."),
    (r"pool\.attention\.probe", "head.probe"),
    (r"pool\.attention\.proj\.", "head.attention.out_proj."),
    (r"pool\.attention\.norm\.", "head.layernorm."),
    (r"pool\.attention\.mlp\.", "head.mlp."),
]


def write_siglip2(model: PackedViT, folder: Path) -> None:
    """model.safetensors, config.json and preprocessor_config.json, to a folder that exists.

    Raises:
        ValueError: Siglip2VisionModel cannot express a field; names each one and the value that it needs.
    """
    c = model.config
    square = (c.pos_grid[0],) * 2
    check_limits("Siglip2VisionModel", c, {**LIMITS, "pos_grid": (square,)})
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor.contiguous() for name, tensor in _rename(state).items()}
    save_tensors(tensors, folder / "model.safetensors")
    _write(folder / "config.json", _config(c, str(model.patch_embed.weight.dtype).removeprefix("torch.")))
    processor = {
        "image_processor_type": "Siglip2ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": c.image_mean,
        "image_std": c.image_std,
        "patch_size": c.patch_buffer,
        "max_num_patches": 256,
    }
    _write(folder / "preprocessor_config.json", processor)


def siglip2_difference(model: PackedViT, folder: Path) -> float:
    """The largest difference of a feature between transformers' model and ours in float32, of images of
    several sizes in one call; see `largest_difference`."""
    transformers = need("transformers", "export", "--verify of --format siglip2 needs transformers")
    other = transformers.Siglip2VisionModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = plain_copy(model)
    images, p = random_images(), model.config.patch_buffer
    resolutions = [(2 + i) * p for i in range(len(images))]
    batch = pack_images(images, p, resolutions)
    patches = list(model.patch_embed.normalise(batch.patches[p, p]).split(batch.image_lengths().tolist()))
    pixels = torch.nn.utils.rnn.pad_sequence(patches, batch_first=True)  # [N, longest, p * p * 3]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(part)).long() for part in patches], True)
    with torch.inference_mode():
        answer = other(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=batch.grids.long())
    outputs: Outputs = {"features": answer.pooler_output.numpy()}
    expected = expected_outputs(model, images, p, resolutions)
    return largest_difference(outputs, {"features": expected["features"]})


def _config(c: ViTConfig, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Siglip2VisionModel"],
        "model_type": "siglip2_vision_model",
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "num_channels": 3,
        "num_patches": c.pos_grid[0] ** 2,
        "patch_size": c.patch_buffer,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == c.mlp),
        "layer_norm_eps": c.norm_eps,
        "attention_dropout": 0.0,
        "vision_use_head": True,
        "dtype": dtype,
    }


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names and in the shapes of Siglip2VisionModel, without the classifier."""
    out = {}
    for kind in ("weight", "bias"):
        q, kv = (state[f"pool.attention.{part}.{kind}"] for part in ("q", "kv"))
        out[f"head.attention.in_proj_{kind}"] = torch.cat([q, kv])
    for name, tensor in state.items():
        if block := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                out[f"encoder.layers.{block[1]}.self_attn.{part}_proj.{block[2]}"] = rows
        for pattern, theirs in NAMES:
            if re.match(pattern, name):
                out[re.sub("^" + pattern, theirs, name)] = _shape(name, tensor)
                break
    return out


def _shape(name: str, tensor: Tensor) -> Tensor:
    if name == "patch_embed.weight":
        return tensor.flatten(0, 2).T  # [D, P * P * 3]
    if name == "pos_embed.table":
        return tensor.flatten(0, 1)
    return tensor[None, None] if name == "pool.attention.probe" else tensor


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
