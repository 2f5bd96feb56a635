"""A model described in words, for the first lines of a run and `packvit info MODEL`."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from packvit.models.config import ViTConfig
from packvit.models.files.checkpoint import hash_model, load_model
from packvit.models.files.weights import find_weights
from packvit.models.text.files import find_own_tokenizer, has_text_tower, load_two_towers
from packvit.models.text.tower import TextTower
from packvit.models.vit import PackedViT


def describe_model(model: PackedViT) -> str:
    """Its size, such as `ViT of width 192, depth 12, 5.7 M parameters`."""
    return f"ViT of width {model.config.width}, depth {model.config.depth}, {count(model)}"


def describe_positions(config: ViTConfig) -> str:
    """Their kind and coordinates, such as `factorized, learned, fractional`."""
    table = f", {config.pos_table}" if config.pos_embed == "factorized" else ""
    coords = "" if config.pos_embed == "none" else f", {config.pos_coords}"
    turned = "" if config.rope_coords == "none" else f" + rope_2d, {config.rope_coords}"
    return f"{config.pos_embed}{table}{coords}{turned}"


def describe_text_tower(tower: TextTower) -> str:
    """Its size, and the texts that it takes."""
    config = tower.config
    return (
        f"width {config.width}, depth {config.depth}, {count(tower)}, texts of at most {config.max_tokens} "
        f"tokens"
    )


def count(module: nn.Module) -> str:
    """The number of its parameters."""
    number = sum(parameter.numel() for parameter in module.parameters())
    return f"{number / 1e6:.1f} M parameters" if number >= 1e5 else f"{number:,} parameters"


def describe_file(path: str | Path) -> Iterator[tuple[str, str]]:
    """(what, value) pairs that describe a model in a file or folder to a person.

    Args:
        path: as for `load_model`.

    Raises:
        FileNotFoundError, ImportError, ValueError: as for `load_model`.
    """
    weights = find_weights(Path(path))
    yield "weights", str(weights)
    if not has_text_tower(path):
        model = load_model(path)
        yield "model", describe_model(model)
        yield "classes", str(model.config.num_classes or "none: it gives features")
        yield from _describe_input(model.config)
        yield "hash", hash_model(model)
        return
    towers = load_two_towers(path)
    text = towers.config.text
    scale, bias = (value.item() for value in towers.logits())
    yield "image tower", describe_model(towers.image)
    yield from _describe_input(towers.config.image)
    yield "text tower", describe_text_tower(towers.text)
    yield "its attention", f"{text.heads} heads, {text.pool} pooling"
    if text.fixed_length:
        yield "texts", f"all filled up to {text.max_tokens} tokens, with token {text.pad_id}"
    yield "embeddings", f"{towers.config.embed_dim} channels, of images and of texts"
    offset = "" if towers.config.bias is None else f" {'-' if bias < 0 else '+'} {abs(bias):.3g}"
    yield "logits", f"{scale:.3g} x cosine{offset}"
    found = find_own_tokenizer(path)
    yield "tokeniser", f"{found[1]}, {found[0].vocab_size} tokens" if found else "none beside the weights"
    yield "hash", f"{hash_model(towers.image)}, of the image tower"


def _describe_input(config: ViTConfig) -> Iterator[tuple[str, str]]:
    yield "patch embedding", f"{config.patch_buffer} x {config.patch_buffer} pixels, {config.patch_operator}"
    yield "positions", f"{describe_positions(config)}, {' x '.join(map(str, config.pos_grid))}"
    yield "attention", f"{config.heads} heads, {config.pool} pooling"
