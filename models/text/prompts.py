"""Names of classes as texts: prompts from templates, and their embeddings by a text tower."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from packvit.models.text.packed import PackedText, cut_packs
from packvit.models.text.tokenizer import TextEncoder, Tokens
from packvit.models.text.two_towers import TwoTowers, unit
from packvit.packing import map_leaves, send

PLACE = "{}"  # in a template, where the name goes
AS_IT_IS = (PLACE,)  # the names alone
BATCH_TOKENS = 16_384


def embed_prompts(
    towers: TwoTowers, encode: TextEncoder, names: Sequence[str], templates: Sequence[str] = AS_IT_IS
) -> Tensor:
    """One vector for each name: the mean of its prompts' unit vectors, of length 1 (CLIP, arXiv 2103.00020,
    3.1.4).

    A prompt that is too long for the text tower is cut off, like a caption.

    Args:
        towers: two towers on any device; the caller sets autocast.
        encode: the encoder of these towers.
        names: C names of classes.
        templates: each with `{}` where the name goes.

    Returns:
        [C, E], float32 or better, on the towers' device.

    Raises:
        ValueError: see `encode_prompts`.
    """
    return average_prompts(towers, encode_prompts(encode, names, templates))


def average_prompts(towers: TwoTowers, prompts: Sequence[Sequence[Tokens]]) -> Tensor:
    """`embed_prompts` of prompts whose tokens are known: K of each of C classes."""
    embedded = embed_tokens(towers, [prompt for own in prompts for prompt in own])  # [C * K, E]
    return average_by_class(embedded, [len(own) for own in prompts])


def average_by_class(prompts: Tensor, counts: Sequence[int]) -> Tensor:
    """The normalised mean of each class's prompts, [C, E].

    Args:
        prompts: float [M, E], unit vectors, one class after the other.
        counts: of the prompts of each of C classes, at least one; their sum is M.
    """
    return unit(torch.stack([own.mean(0) for own in prompts.split(list(counts))]))


def encode_prompts(
    encode: TextEncoder, names: Sequence[str], templates: Sequence[str] = AS_IT_IS
) -> list[list[Tokens]]:
    """The tokens of each name in each template.

    Raises:
        ValueError: there is no name or no template, a name is empty, a template has no place for a name.
    """
    check_templates(templates)
    if not names:
        raise ValueError("there are no names of classes to make prompts from")
    for number, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"the name of class {number} is empty")
    return [[encode(template.replace(PLACE, name)) for template in templates] for name in names]


@torch.inference_mode()
def embed_tokens(towers: TwoTowers, texts: Sequence[Tokens], batch_tokens: int = BATCH_TOKENS) -> Tensor:
    """Unit vectors of any number of texts, [N, E] in their order, a batch of them at a time.

    Args:
        batch_tokens: maximum number of tokens in a batch, unless a single text has more.
    """
    device = next(towers.parameters()).device
    packed = [PackedText.build(pack) for pack in cut_packs([text.ids for text in texts], batch_tokens)]
    sent = [map_leaves(pack, Tensor, lambda tensor: send(tensor, device)) for pack in packed]
    return torch.cat([towers.embed_texts(text) for text in sent])


def read_templates(path: str | Path) -> tuple[str, ...]:
    """The templates in a file, one a line; empty lines are left out.

    Raises:
        ValueError: there is no such file, or one of its lines is no template; names it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ValueError(f"{path}: templates cannot be read ({reason})") from None
    templates = tuple(line.strip() for line in lines if line.strip())
    try:
        check_templates(templates)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return templates


def check_templates(templates: Sequence[str]) -> None:
    """Refuse templates that names cannot be put into.

    Raises:
        ValueError: there is none, or one has no `{}`.
    """
    if not templates:
        raise ValueError("there is no template, such as `a photo of a {}.`")
    for template in templates:
        if PLACE not in template:
            raise ValueError(f"the template {template!r} has no {PLACE} where the name goes")
