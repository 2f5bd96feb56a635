"""What makes classes of a model's outputs: its own head, or the texts that two towers are given as labels."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from packvit.common.device import make_autocast
from packvit.evaluate.texts.prompts import ZeroShot
from packvit.models import (
    Outputs,
    PackedViT,
    TextEncoder,
    Tokenizer,
    TwoTowers,
    average_prompts,
    encode_prompts,
    unit,
)


class Read(NamedTuple):
    """What is read of a batch's outputs.

    logits: [N, C]; None if there are no classes.
    features: [N, D].
    """

    logits: Tensor | None
    features: Tensor


class Head(Protocol):
    """Reads what a model gives.

    Attributes:
        num_classes: C; 0 if there are none.
        num_features: D.
        names: of the classes, where the head has them.
        remark: what the caller should know, or empty.
    """

    num_classes: int
    num_features: int
    names: tuple[str, ...] | None
    remark: str

    def __call__(self, outputs: Outputs) -> Read:
        """Logits and features of a batch."""
        ...


class OwnHead:
    """The classes that a model was trained on, and what enters its head."""

    names: tuple[str, ...] | None = None
    remark = ""

    def __init__(self, vit: PackedViT) -> None:
        self.num_classes, self.num_features = vit.config.num_classes, vit.config.feature_dim

    def __call__(self, outputs: Outputs) -> Read:
        """See Head."""
        return Read(outputs.logits if self.num_classes else None, outputs.features)


class TextHead:
    """Any classes by their names, of two towers; features are embeddings of length 1.

    Args:
        towers: both on one device; only a vector for each class is kept of their text tower.
        tokenizer: theirs; None without labels, or where none was found.
        labels: names of the classes; without any there are only features.
        templates: of the prompts that are made of each name.
        precision: of matrix products.

    Raises:
        ValueError: there are labels and no tokeniser, it belongs to another model, or the labels or the
            templates cannot be used.
    """

    def __init__(
        self,
        towers: TwoTowers,
        tokenizer: Tokenizer | None,
        labels: Sequence[str],
        templates: Sequence[str],
        precision: str,
    ) -> None:
        self.num_classes, self.num_features = len(labels), towers.config.embed_dim
        self.names: tuple[str, ...] | None = tuple(labels) or None
        self.remark = ""
        self._scores: ZeroShot | None = None
        if not labels:
            return
        if tokenizer is None:
            raise ValueError("the model has no tokeniser beside its weights, which labels need: name one")
        text = towers.config.text
        prompts = encode_prompts(TextEncoder(tokenizer, text), labels, templates)
        with torch.inference_mode(), make_autocast(precision, next(towers.parameters()).device):
            classes = average_prompts(towers, prompts)
            scale, bias = (value.item() for value in towers.logits())
        cut = sum(prompt.cut for own in prompts for prompt in own)
        self._scores = ZeroShot(classes.float(), scale, bias, cut)
        if cut:
            number, most = len(labels) * len(templates), text.max_tokens
            self.remark = f"{cut} of {number} prompts have more than {most} tokens and are cut off"

    def __call__(self, outputs: Outputs) -> Read:
        """See Head."""
        embedded = unit(outputs.logits)  # [N, E]
        return Read(None if self._scores is None else self._scores.logits(embedded), embedded)
