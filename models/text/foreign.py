"""Two towers of other projects: big_vision's SigLIP (`img/`, `txt/`, `t`, `b`) and transformers' SigLIP and
SigLIP 2.

Both pad every text to a fixed length and attend to the padding. Their image towers are translated as if they
were separate models.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from packvit.models.files import big_vision, huggingface
from packvit.models.files.canonical import Imported, rename
from packvit.models.files.translate import translate

Fields = dict[str, Any]
BIG_VISION = re.compile(r"((?:params/|opt/target/)?)txt/pos_embedding")
BIG_VISION_TABLE = [
    (r"Embed_0/embedding", "embed.weight"),
    (r"Transformer/pos_embedding", "more_pos"),
    *big_vision.TABLE,
]
HUGGING_FACE_TABLE = [
    (r"embeddings\.token_embedding\.weight", "embed.weight"),
    (r"final_layer_norm\.(weight|bias)", r"norm.\1"),
    (r"head\.(weight|bias)", r"head.\1"),
    *huggingface.TABLE,
]
HUGGING_FACE = "text_model.embeddings.token_embedding.weight"
GEMMA = 256_000  # tokens, of which 0 fills a text; in the other tokeniser that big_vision uses it is 1


def has_texts(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names has a text tower."""
    return any(name == HUGGING_FACE or BIG_VISION.fullmatch(name) for name in names)


def translate_towers(
    tensors: dict[str, Tensor], stored: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Fields, dict[str, str]]:
    """Foreign weights of two towers to ours.

    Args:
        tensors: all of a file.
        stored: the config.json beside it, or empty.

    Returns:
        Our state dict, TwoTowersConfig fields as in JSON, and the file's name of each of our names.

    Raises:
        ValueError: no known format, unknown keys or impossible shapes, by name.
    """
    start = next((match[1] for key in tensors if (match := BIG_VISION.fullmatch(key))), None)
    if start is not None:
        names = [(f"{start}t", "t"), (f"{start}b", "b")]
        text = _big_vision_text(_below(tensors, f"{start}txt/"))
        own = _below(tensors, start)
        image = {key: tensor for key, tensor in own.items() if key.startswith("img/")}
    elif HUGGING_FACE in tensors:
        names = [("logit_scale", "t"), ("logit_bias", "b")]
        text = _hugging_face_text(_below(tensors, "text_model."), stored.get("text_config", {}))
        image = {key: tensor for key, tensor in tensors.items() if key.startswith("vision_model.")}
    else:
        raise ValueError("there is no text tower of packvit, big_vision or Hugging Face")
    image_state, image_fields, image_origin = translate(image, dict(stored))
    fields = {"image": image_fields, "text": text.fields, "bias": None}
    state = {f"image.{name}": tensor for name, tensor in image_state.items()}
    state |= {f"text.{name}": tensor for name, tensor in text.state.items()}
    origin = {f"image.{name}": key for name, key in image_origin.items()}
    origin |= {f"text.{name}": key for name, key in text.origin.items()}
    for key, name in names:
        if key in tensors:
            state[f"logits.{name}"], origin[f"logits.{name}"] = tensors[key].reshape(1), key
    if "logits.b" in state:
        fields["bias"] = 0.0  # the weights have it
    return state, fields, origin


def _below(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def _big_vision_text(tensors: dict[str, Tensor]) -> Imported:
    """A text tower, whose blocks have another parent than an image tower's."""
    renamed = {key.replace("Encoder_0/", "Transformer/", 1): tensor for key, tensor in tensors.items()}
    out = big_vision.convert_layers(renamed, BIG_VISION_TABLE)
    more = out.pop("more_pos")
    if more is not None:
        # Old checkpoints have added two tables by mistake.
        out.state["pos"] = out.state["pos"] + more
    _tell(out)
    out.fields["pad_id"] = 0 if out.fields["vocab_size"] == GEMMA else 1
    return out


def _hugging_face_text(tensors: dict[str, Tensor], stored: Mapping[str, Any]) -> Imported:
    out = rename(tensors, HUGGING_FACE_TABLE)
    for kind in ("weight", "bias"):
        out.fuse(f"attn.qkv.{kind}", tuple(f"attn.{part}.{kind}" for part in ("query", "key", "value")))
    out.fields |= huggingface.sidecar_fields(dict(stored))
    _tell(out)
    if stored.get("pad_token_id") is not None:
        out.fields["pad_id"] = stored["pad_token_id"]
    return out


def _tell(out: Imported) -> None:
    """What names and shapes tell of a text tower, and its table of positions to where we keep it.

    Raises:
        ValueError: a tensor that it needs is missing.
    """
    pos, origin = out.pop("pos"), out.origin.get("pos", "")
    for name in ("embed.weight", "blocks.0.mlp.fc1.weight"):
        if name not in out.state:
            raise ValueError(f"the text tower has no {name}")
    if pos is None:
        raise ValueError("the text tower has no position embedding")
    vocab_size, width = out.state["embed.weight"].shape
    out.put("positions", pos.reshape(-1, width), origin)
    head = out.state.get("head.weight")
    out.fields = {
        "width": width,
        "heads": max(1, width // 64),
        "depth": 1 + max(int(name.split(".")[1]) for name in out.state if name.startswith("blocks.")),
        "mlp": "gelu_tanh",
        "mlp_ratio": out.state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qk_norm": "none",
        "vocab_size": vocab_size,
        "max_tokens": len(out.state["positions"]),
        "pool": "map" if "pool.attention.probe" in out.state else "last",
        "embed_dim": 0 if head is None else head.shape[0],
        "fixed_length": True,
        **out.fields,
    }
