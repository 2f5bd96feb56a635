"""The chunks of a pass: some images each, shown to a model at all settings by this process or an engine's.

What is found of a chunk depends on nothing but the chunk and the pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from socket import gethostname
from typing import NamedTuple

import torch
from torch import Tensor

from packvit.common.device import make_autocast
from packvit.common.ranks import start_ranks
from packvit.data import BadShard, EvalSet, Piece
from packvit.evaluate.checks import mean_tokens
from packvit.evaluate.setting import Setting
from packvit.evaluate.sweep.evaluators import Evaluator
from packvit.models import PackedViT
from packvit.packing import PackedBatch

# Images and tokens, of all settings, in a chunk. Small sets have smaller chunks, for ranks to share.
MOST_IMAGES, LEAST_IMAGES, CHUNKS, MOST_TOKENS = 256, 32, 64, 2**20


class Found(NamedTuple):
    """What is found of a chunk.

    number: of the chunk among those that were asked for.
    columns: [n, ...] values of its n images that can be used, by setting and name.
    skipped: {"shard", "key", "reason"} of the others.
    """

    number: int
    columns: dict[str, dict[str, Tensor]]
    skipped: list[dict]


@dataclass(frozen=True)
class Pass:
    """A model over a set of images at some settings.

    Args:
        model: in eval mode.
        evaluators: choose what is kept of each image.
        images: the set.
        settings: the settings.
        tokens: tokens in a batch.
        precision: precision of matrix products.
    """

    model: PackedViT
    evaluators: Sequence[Evaluator]
    images: EvalSet
    settings: Sequence[Setting]
    tokens: int
    precision: str

    def answer(self, chunks: Sequence[range], workers: int, device: torch.device) -> Iterator[Found]:
        """Chunks as they become complete, in any order.

        Args:
            chunks: places of their images.
            workers: processes that decode.
            device: where the model is, and where the columns are.
        """
        pieces = self.images.pieces(self.settings, self.tokens, chunks, workers, device)
        return self._join(pieces, device)

    def _join(self, pieces: Iterable[Piece], device: torch.device) -> Iterator[Found]:
        waiting: dict[int, dict[str, dict[str, list[Tensor]]]] = {}
        autocast = make_autocast(self.precision, device)
        for piece in pieces:
            found = waiting.setdefault(piece.chunk, {})
            if len(piece.places):
                with torch.inference_mode(), autocast:
                    columns = answer(self.model, self.evaluators, piece.batch)
                columns["place"] = piece.places
                parts = found.setdefault(self.settings[piece.way].name, {})
                for name, tensor in columns.items():
                    # A copy: a view would keep the pixels of its batch.
                    parts.setdefault(name, []).append(tensor.clone())
            if piece.last:
                del waiting[piece.chunk]
                joined = {
                    setting: {name: torch.cat(tensors) for name, tensors in parts.items()}
                    for setting, parts in found.items()
                }
                yield Found(piece.chunk, joined, piece.skipped)


class Answerer:
    """What a process of an engine has for all chunks of a pass.

    Args:
        work: the pass, with its model on a CPU.
        workers: processes that decode beside a GPU; a process on a CPU has one core, and the model needs it.
        device: auto, cpu or cuda.
    """

    def __init__(self, work: Pass, workers: int, device: str) -> None:
        self.work = work
        self.device = start_ranks(device).device
        self.workers = 0 if self.device.type == "cpu" else workers
        work.model.to(self.device)


def answer_chunk(answerer: Answerer, _: str, number: int, chunk: range) -> Found:
    """What is found of one chunk, its columns on a CPU: a job, named by its first argument.

    Raises:
        ValueError: this machine does not see a shard whose headers the driver has read.
    """
    images = answerer.work.images
    for shard in {images.headers[place].reference.shard for place in chunk}:
        try:
            images.shards.open(shard)
        except BadShard as error:  # another machine may: its samples are not bad
            raise ValueError(f"{gethostname()}: {error}: all machines must share the shards") from error
    [found] = answerer.work.answer([chunk], answerer.workers, answerer.device)
    columns = {
        setting: {name: tensor.cpu() for name, tensor in parts.items()}
        for setting, parts in found.columns.items()
    }
    return Found(number, columns, found.skipped)


def answer(model: PackedViT, evaluators: Sequence[Evaluator], batch: PackedBatch) -> dict[str, Tensor]:
    """The columns of a batch: `tokens`, `label` if each image has one, and evaluator k's as `k/name`."""
    outputs = model.outputs(batch)
    columns = {"tokens": batch.image_lengths().int()}
    if batch.labels is not None and batch.labels.ndim == 1:
        columns["label"] = batch.labels
    for number, evaluator in enumerate(evaluators):
        for name, tensor in evaluator.collect(outputs, batch).items():
            columns[f"{number}/{name}"] = tensor
    return columns


def cut_chunks(images: int, settings: Sequence[Setting]) -> list[range]:
    """The places of each chunk's images; a function of the set and the settings alone."""
    tokens = sum(mean_tokens(setting) for setting in settings)
    size = max(1, min(max(LEAST_IMAGES, images // CHUNKS), MOST_IMAGES, MOST_TOKENS // tokens))
    return [range(start, min(images, start + size)) for start in range(0, images, size)]
