"""Texts to unit vectors: packed into batches that ranks share."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from packvit.common.device import make_autocast
from packvit.common.ranks import Ranks
from packvit.models import PackedText, TextEncoder, TextTower, unit
from packvit.packing import map_leaves


class Embedded(NamedTuple):
    """Texts as vectors.

    vectors: float32 [M, E] of length 1, on the CPU.
    cut: how many of the M texts were too long and lost their end.
    """

    vectors: Tensor
    cut: int


@dataclass(frozen=True)
class TextEmbedder:
    """Embeds texts with a text tower; the same on every number of ranks.

    Args:
        tower: in eval mode, on the device of the ranks.
        encode: makes its tokens.
        ranks: share the batches.
        precision: of matrix products.
        tokens: in a batch, unless a single text has more.
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
        found = [self.encode(text) for text in texts]
        # Equal texts would differ in their last digits in batches of different sizes.
        numbers: dict[tuple[int, ...], int] = {}
        place = [numbers.setdefault(tuple(tokens.ids), len(numbers)) for tokens in found]
        packs = list(cut_packs(list(numbers), self.tokens))
        rank, world_size = self.ranks.rank, self.ranks.world_size
        parts = self.ranks.gather([self._embed(pack) for pack in packs[rank::world_size]])
        vectors = [parts[number % world_size][number // world_size] for number in range(len(packs))]
        return Embedded(torch.cat(vectors)[place], sum(tokens.cut for tokens in found))

    def takes(self, text: str) -> bool:
        """Whether the tokeniser makes anything of a text."""
        try:
            self.encode(text)
        except ValueError:
            return False
        return True

    def _embed(self, pack: Sequence[Sequence[int]]) -> Tensor:
        device = self.ranks.device
        text = map_leaves(PackedText.build(pack), Tensor, lambda tensor: tensor.to(device))
        with torch.inference_mode(), make_autocast(self.precision, device):
            vectors = unit(self.tower(text))
        return vectors.float().cpu().clone()


def cut_packs(texts: Sequence[Sequence[int]], tokens: int) -> Iterable[list[Sequence[int]]]:
    """Consecutive texts of at most `tokens` tokens together, at least one."""
    pack: list[Sequence[int]] = []
    used = 0
    for text in texts:
        if pack and used + len(text) > tokens:
            yield pack
            pack, used = [], 0
        pack.append(text)
        used += len(text)
    if pack:
        yield pack


def fingerprint(*tensors: Tensor) -> str:
    """Tells tensors from others: some hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
