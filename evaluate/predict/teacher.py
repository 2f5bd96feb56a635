"""A model's logits of all images of a shard, written beside them into a shard of the same samples."""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from packvit.common.device import make_autocast
from packvit.common.files import check_shared
from packvit.common.ranks import start_ranks
from packvit.data import EvalSet, FetchConfig, Shard, write_with_logits
from packvit.evaluate.setting import Setting
from packvit.evaluate.sweep.chunks import cut_chunks
from packvit.models import PackedViT, hash_model, load_model
from packvit.packing import PackedBatch, PackingConfig


@dataclass(frozen=True)
class Lesson:
    """How a teacher answers.

    Args:
        teacher: whatever load_model reads.
        weights: its hash.
        setting: how images are shown.
        packing: `seq_len` times `sequences` tokens are in a batch.
        precision: of matrix products.
        workers: processes that decode.
        fetch: how shards are fetched.
        field: of each sample; gets its logits, float16 [classes].
        mark: a part of hidden names that no other lesson has.
    """

    teacher: Path
    weights: str
    setting: Setting
    packing: PackingConfig
    precision: str
    workers: int
    fetch: FetchConfig
    field: str
    mark: str


class Taught(NamedTuple):
    """What became of a shard.

    file: the new shard, under a hidden name.
    samples: in it.
    skipped: {"key", "reason"} and more of the images that cannot be used.
    """

    file: Path
    samples: int
    skipped: list[dict]


class Teacher:
    """A model on a device.

    Args:
        lesson: how it answers.
        model: the teacher, if it is at hand; otherwise it is loaded.
        device: auto, cpu or cuda.

    Raises:
        ValueError: the model that is loaded has other weights.
    """

    def __init__(self, lesson: Lesson, model: PackedViT | None, device: str) -> None:
        self.lesson = lesson
        self.device = start_ranks(device).device
        self.workers = lesson.workers
        if model is None:
            if self.device.type == "cpu":
                self.workers = 0  # a process of a cluster has one core, and the model needs it
            model = load_model(lesson.teacher)
            if hash_model(model) != lesson.weights:
                raise ValueError(f"{lesson.teacher} is not the same on all machines")
        self.model = model.to(self.device)
        self.autocast = make_autocast(lesson.precision, self.device)

    def teach(self, path: str, target: Path) -> Taught:
        """Write a shard with logits under a hidden name beside `target`, if it is not there yet.

        The logits depend on the shard and the lesson alone: batches hold no image of another shard.
        """
        lesson = self.lesson
        check_shared(target.parent)
        file = target.with_name(f".{target.name}.{lesson.mark}.whole")
        if file.exists():  # a process wrote it before it, or its driver, was killed
            return Taught(file, len(Shard.open(file)), [])
        # A name that was found is no pattern any more.
        literal = re.sub(r"([\\{}])", r"\\\1", path)
        logits, skipped = self._answer_all(EvalSet([literal], fetch=lesson.fetch, as_training=True))
        samples = write_with_logits(Shard.open(path, lesson.fetch), file, logits, lesson.field)
        return Taught(file, samples, skipped)

    def _answer_all(self, images: EvalSet) -> tuple[dict[str, np.ndarray], list[dict]]:
        """{key: float16 [classes]} of all images that can be used, and the lines of those that cannot."""
        skipped = list(images.skipped)
        logits: dict[str, np.ndarray] = {}
        settings, packing = [self.lesson.setting], self.lesson.packing
        chunks, tokens = cut_chunks(len(images.headers), settings), packing.seq_len * packing.sequences
        for piece in images.pieces(settings, tokens, chunks, self.workers, self.device):
            skipped += piece.skipped
            if len(piece.places):
                logits |= answer(self.model, piece.batch, self.autocast)
        return logits, skipped


def teach(teacher: Teacher, path: str, target: Path) -> Taught:
    """See Teacher.teach: a job."""
    return teacher.teach(path, target)


@torch.inference_mode()
def answer(model: PackedViT, batch: PackedBatch, autocast: AbstractContextManager) -> dict[str, np.ndarray]:
    """{key: float16 [classes]} of a batch on the model's device."""
    with autocast:
        logits = model(batch)
    return dict(zip(batch.keys, logits.half().cpu().numpy(), strict=True))
