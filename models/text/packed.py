"""PackedText: the tokens of N texts, one text after another, without padding."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class PackedText(NamedTuple):
    """Texts in one flat tensor, as images are in a PackedBatch. As a target of a batch it moves with it.

    ids: int64 [T], tokens.
    place: int64 [T], of each token in its text, from 0.
    owner: int32 [T], text of each token; -1 in the two tokens that stand in if there are no texts.
    cu_seqlens: int32 [segments + 1], offsets of the texts.
    num_texts: N.
    max_len: tokens of the longest text.
    squares: sum over texts of their squared lengths, the cost of attention.
    cut: number of texts that were too long and were cut off.
    """

    ids: Tensor
    place: Tensor
    owner: Tensor
    cu_seqlens: Tensor
    num_texts: int
    max_len: int
    squares: int
    cut: int = 0

    @staticmethod
    def build(texts: Sequence[Sequence[int]], cut: int = 0) -> "PackedText":
        """Pack texts, each given as its tokens; `cut` of them were cut off.

        Raises:
            ValueError: a text has no token.
        """
        lengths = [len(text) for text in texts]
        if 0 in lengths:
            raise ValueError(f"text {lengths.index(0)} has no token")
        ids = [token for text in texts for token in text]
        owner = [number for number, length in enumerate(lengths) for _ in range(length)]
        place = [number for length in lengths for number in range(length)]
        if not texts:
            # Two of them, because a compiler makes one token a case of its own.
            ids, place, owner, lengths = [0, 0], [0, 0], [-1, -1], [2]
        return PackedText(
            ids=torch.tensor(ids),
            place=torch.tensor(place),
            owner=torch.tensor(owner, dtype=torch.int32),
            cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
            num_texts=len(texts),
            max_len=max(lengths),
            squares=sum(len(text) ** 2 for text in texts),
            cut=cut,
        )


def cut_packs(texts: Sequence[Sequence[int]], tokens: int) -> list[list[Sequence[int]]]:
    """Consecutive texts of at most `tokens` tokens together, or one that has more; without texts an empty
    pack."""
    packs: list[list[Sequence[int]]] = [[]]
    used = 0
    for text in texts:
        if packs[-1] and used + len(text) > tokens:
            packs.append([])
            used = 0
        packs[-1].append(text)
        used += len(text)
    return packs
