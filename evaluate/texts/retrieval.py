"""Retrieval: captions of an image among all captions of the set, and the image of a caption among all images.

Only captions of images that could be used are ranked.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from packvit.data import BadSample, BadShard, CaptionTarget, EvalSet
from packvit.evaluate.measures.accuracy import wilson_interval
from packvit.evaluate.measures.retrieval import DEPTHS, FIRST, TO_IMAGE, TO_TEXT, VALUES, rank_pairs, recall
from packvit.evaluate.sweep.store import Columns
from packvit.evaluate.texts.embed import TextEmbedder, fingerprint
from packvit.models import Outputs, unit
from packvit.packing import Collated, PackedBatch

LONGEST = 200  # signs of a caption that predictions.npz keeps


class SideCaptions(CaptionTarget):
    """Captions that every sample of a set needs, read all at once instead of with the images."""

    def collate(self, values: Sequence[Any]) -> Collated | None:
        """See Target; a batch gets nothing."""
        return None


class SetCaptions(NamedTuple):
    """The captions of a set of images.

    texts: all of them, in the order of the images.
    owner: of each text, the place of its image in the set.
    """

    texts: list[str]
    owner: list[int]


def read_set_captions(images: EvalSet, field: str) -> SetCaptions:
    """All captions of a set; see `CaptionTarget` for the field."""
    kind, texts, owner = CaptionTarget(field), [], []
    for place, header in enumerate(images.headers):
        try:
            found = kind.read(images.shards.open(header.reference.shard), header.reference.member)
        except (BadSample, BadShard):
            continue  # the pass over the images will say so, too
        texts += found
        owner += [place] * len(found)
    return SetCaptions(texts, owner)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """An evaluator: recall at 1, 5 and 10, from images to texts and from texts to images.

    An image is right if any of its captions is among the first, a caption if its image is.

    Args:
        captions: M texts.
        texts: float32 [M, E], their unit vectors.
        owner: int64 [M], the place of each one's image in the set.
        embeddings: whether predictions.npz holds each image's vector.
        cut: number of captions that were too long for the tower and were cut off.
    """

    captions: Sequence[str]
    texts: Tensor
    owner: Tensor
    embeddings: bool = False
    cut: int = 0

    @property
    def name(self) -> str:
        """See Evaluator."""
        return f"retrieval {fingerprint(self.texts, self.owner)}"

    def collect(self, outputs: Outputs, batch: PackedBatch) -> dict[str, Tensor]:
        """See Evaluator."""
        return {"embedding": unit(outputs.logits).float()}

    def summarise(self, columns: Columns) -> Iterator[tuple[str, Any]]:
        """See Evaluator.

        For each image, `image_to_text_rank` counts the captions that rank before the first of its own, -1 for
        an image without any, and `retrieved` is the number of the caption that ranks first. For each ranked
        caption, `captions` is its text and `caption_image` the number of its image.
        """
        images, place = columns["embedding"], columns["place"]
        number = torch.full((max(int(place.max()), int(self.owner.max())) + 1,), -1)
        number[place] = torch.arange(len(place))
        used = number[self.owner] >= 0
        texts, owner = self.texts[used], number[self.owner[used]]
        if not len(texts) or not images.isfinite().all() or not texts.isfinite().all():
            yield from dict.fromkeys((*VALUES, "texts"), math.nan).items()
            return
        found = rank_pairs(images, texts, owner)
        asked = torch.zeros(len(images), dtype=torch.bool)
        asked[owner] = True
        ranks = found.images[asked]
        low, high = wilson_interval(int((ranks == 0).sum()), len(ranks))
        values = {f"{TO_TEXT}{depth}": recall(ranks, depth, len(texts)) for depth in DEPTHS}
        values |= {f"{FIRST}_low": low, f"{FIRST}_high": high}
        values |= {f"{TO_IMAGE}{depth}": recall(found.texts, depth, len(images)) for depth in DEPTHS}
        yield from ((name, values[name]) for name in VALUES)
        yield "texts", len(texts)
        yield "image_to_text_rank", torch.where(asked, found.images, -1)
        yield "retrieved", found.first
        captions = [text[:LONGEST] for text, kept in zip(self.captions, used.tolist(), strict=True) if kept]
        yield "captions", np.array(captions)
        yield "caption_image", owner.numpy()
        if self.embeddings:
            yield "embedding", images


def make_retrieval(embed: TextEmbedder, captions: SetCaptions, embeddings: bool = False) -> Retrieval:
    """Embed the captions of a set; every rank calls it. Captions for which the tokeniser yields no token are
    left out.

    Raises:
        ValueError: no caption is left.
    """
    found = [embed.tokens_of(text) for text in captions.texts]
    kept = [number for number, tokens in enumerate(found) if tokens is not None]
    if not kept:
        raise ValueError(f"the tokeniser yields no token for any of the {len(captions.texts)} captions")
    texts = [captions.texts[number] for number in kept]
    owner = torch.tensor([captions.owner[number] for number in kept])
    vectors, cut = embed.embed([tokens for tokens in found if tokens is not None])
    return Retrieval(texts, vectors, owner, embeddings, cut)
