"""Texts to unit vectors: packed into batches that ranks share."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from packvit.common.device import make_autocast
from packvit.common.ranks import Ranks
from packvit.models import PackedText, TextEncoder, TextTower, Tokens, cut_packs, unit
from packvit.packing import map_leaves


class Embedded(NamedTuple):
    """Texts as vectors.

    vectors: float32 [M, E] of length 1, on the CPU.
    cut: how many of the M texts were too long and were cut off.
    """

    vectors: Tensor
    cut: int


@dataclass(frozen=True)
class TextEmbedder:
    """Embeds texts with a text tower; the same on every number of ranks.

    Args:
        tower: the text tower, in eval mode, on the device of the ranks.
        encode: makes its tokens.
        ranks: the ranks, which share the batches.
        precision: precision of matrix products.
        tokens: maximum number of tokens in a batch, unless a single text has more.
    """

    tower: TextTower
    encode: TextEncoder
    ranks: Ranks
    precision: str
    tokens: int

    def __call__(self, texts: Sequence[str]) -> Embedded:
        """Embed texts; every rank calls it with the same ones. Equal texts have equal vectors.

        Raises:
            ValueError: nothing stands in a text.
        """
        return self.embed([self.encode(text) for text in texts])

    def embed(self, texts: Sequence[Tokens]) -> Embedded:
        """Embed texts whose tokens are known; see `__call__`."""
        # Equal texts would differ in their last digits in batches of different sizes.
        numbers: dict[tuple[int, ...], int] = {}
        place = [numbers.setdefault(tuple(tokens.ids), len(numbers)) for tokens in texts]
        packs = cut_packs(list(numbers), self.tokens)
        rank, world_size = self.ranks.rank, self.ranks.world_size
        parts = self.ranks.gather([self._embed_pack(pack) for pack in packs[rank::world_size]])
        vectors = [parts[number % world_size][number // world_size] for number in range(len(packs))]
        return Embedded(torch.cat(vectors)[place], sum(tokens.cut for tokens in texts))

    def tokens_of(self, text: str) -> Tokens | None:
        """The tokens of a text; None if the tokeniser yields none."""
        try:
            return self.encode(text)
        except ValueError:
            return None

    def _embed_pack(self, pack: Sequence[Sequence[int]]) -> Tensor:
        device = self.ranks.device
        text = map_leaves(PackedText.build(pack), Tensor, lambda tensor: tensor.to(device))
        with torch.inference_mode(), make_autocast(self.precision, device):
            vectors = unit(self.tower(text))
        return vectors.float().cpu().clone()


def fingerprint(*tensors: Tensor) -> str:
    """Some hexadecimal digits that identify tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
