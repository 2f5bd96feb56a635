"""One pass over a set of images: a model at all settings at once, chunk by chunk.

Every image is decoded once. The values that evaluators keep of a chunk are written to a file as soon as the
chunk is done. The numbers of ranks and workers only determine which of them does which chunk.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from packvit.common.device import choose_precision
from packvit.common.display import Bar, Display
from packvit.common.engine.engine import Engine
from packvit.common.ranks import Ranks
from packvit.data import EvalSet
from packvit.evaluate.measures.calibration import LossKind
from packvit.evaluate.setting import Setting
from packvit.evaluate.sweep.chunks import Answerer, Pass, answer_chunk, cut_chunks
from packvit.evaluate.sweep.evaluators import Answers, Evaluator
from packvit.evaluate.sweep.store import ChunkStore
from packvit.models import PackedViT
from packvit.packing import PackingConfig

UNFINISHED = ".unfinished"  # how names of folders begin that hold what is not complete yet
VERSION = 1  # of what is in them
SAY_EVERY = 30.0  # seconds between two lines about the progress, where there is no terminal


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Args:
        name: its name in rows and file names, if there are several models.
        path: where it came from.
        model: the model, in eval mode.
        weights: hash of its weights, see `packvit.models.hash_model`.
        evaluators: what is measured.
        loss: the loss that it was trained with.
        of_sets: evaluators to use instead on sets with other labels or captions, by the set's name.
        facts: further entries about it in results.json.
    """

    name: str
    path: str
    model: PackedViT
    weights: str
    evaluators: Sequence[Evaluator]
    loss: LossKind = "softmax"
    of_sets: Mapping[str, Sequence[Evaluator]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 if classification is not measured."""
        answers = [one for one in self.evaluators if isinstance(one, Answers)]
        if not answers:
            return 0
        scores = answers[0].scores
        return self.model.config.num_classes if scores is None else scores.num_classes

    def on(self, name: str) -> "Subject":
        """The model with the evaluators of a set."""
        return replace(self, evaluators=self.of_sets.get(name, self.evaluators))


@dataclass(frozen=True)
class Evaluation:
    """How models are run over sets of images; every rank holds one.

    Args:
        out: folder for the results, on storage that all ranks share.
        packing: `seq_len` times `sequences` is the number of tokens in a batch.
        ranks: the ranks, which share the chunks.
        workers: processes of each rank that decode.
        precision: precision of matrix products.
        display: shows the progress.
        engine: answers the chunks instead of the ranks, of which there is one.
        device: auto, cpu or cuda, of the engine's processes.
    """

    out: Path
    packing: PackingConfig
    ranks: Ranks
    workers: int
    precision: str
    display: Display
    engine: Engine | None = None
    device: str = "auto"

    @property
    def tokens(self) -> int:
        """Tokens in a batch."""
        return self.packing.seq_len * self.packing.sequences

    def collect(
        self, subject: Subject, images: EvalSet, settings: Sequence[Setting], brief: bool = False
    ) -> ChunkStore:
        """Run a model over a set at some settings; every rank calls it and then has all results.

        Args:
            brief: whether the store will be finished, so that it is separate from one that keeps its columns.

        Raises:
            ValueError: no image could be decoded, or ranks do not share `out`.
        """
        chunks = cut_chunks(len(images.headers), settings)
        digest = self._digest(subject, images, settings, brief)
        store = ChunkStore(self.out / f"{UNFINISHED}-{digest[:16]}", len(chunks))
        done = self.ranks.gather(store.done())[0]  # the main rank's word counts
        missing = [chunk for chunk in range(len(chunks)) if chunk not in set(done)]
        if done and missing:
            self.display.say(f"Resuming with {len(missing)} of {len(chunks)} chunks of images")
        work = Pass(subject.model, subject.evaluators, images, settings, self.tokens, self.precision)
        if self.engine is None:
            own = missing[self.ranks.rank :: self.ranks.world_size]
            work.model.to(self.ranks.device)
            with _Progress(self.display, store, chunks, len(settings)) as progress:
                parts = [chunks[number] for number in own]
                for found in work.answer(parts, self.workers, self.ranks.device):
                    store.write(own[found.number], found.columns, found.skipped)
                    progress.update()
            self.ranks.barrier()
        elif missing:
            self._answer_by(self.engine, work, {number: chunks[number] for number in missing}, store)
        if len(store.done()) < len(chunks):
            raise ValueError(f"{self.out} must be a folder that all ranks share")
        if not store.images():
            raise ValueError(f"no image could be decoded in {images.described}")
        return store

    def _answer_by(self, engine: Engine, work: Pass, chunks: Mapping[int, range], store: ChunkStore) -> None:
        """Let an engine answer chunks, by their numbers, and store what it finds."""
        keys = [header.key for header in work.images.headers]
        jobs = [
            (f"images {keys[chunk[0]]} to {keys[chunk[-1]]} of {work.images.described}", number, chunk)
            for number, chunk in chunks.items()
        ]
        work.model.to("cpu")
        setup = partial(Answerer, work, self.workers)
        for found in engine.run("evaluating", answer_chunk, jobs, setup, self.device):
            store.write(found.number, found.columns, found.skipped)
        work.model.to(self.ranks.device)  # for its costs

    def _digest(self, subject: Subject, images: EvalSet, settings: Sequence[Setting], brief: bool) -> str:
        """Names all that the values of a pass depend on."""
        device = self.ranks.device if self.engine is None else torch.device(self.engine.device(self.device))
        facts = {
            "version": VERSION,
            "weights": subject.weights,
            "config": subject.model.config.to_dict(),
            "evaluators": [evaluator.name for evaluator in subject.evaluators],
            "settings": [setting.name for setting in settings],
            "set": images.fingerprint(),
            "tokens": self.tokens,
            "precision": choose_precision(self.precision, device),
            # What a finished store keeps are values, and the loss decides them.
            "brief": subject.loss if brief else None,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Summary(NamedTuple):
    """The results of a pass at a setting.

    row: a row of results.json, without costs.
    arrays: the values of each image: `place` int64 [N], its place in the set, `label` int64 [N], -1 if it is
        unknown, `tokens` int32 [N], and the evaluators' values.
    shared: the evaluators' values for the set, the same at every setting.
    """

    row: dict[str, Any]
    arrays: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]


def summarise(store: ChunkStore, subject: Subject, setting: Setting, set_name: str) -> Summary:
    """The results of a pass at a setting, for the main rank.

    tokens_per_image is the mean over images, gflops_per_image that of one forward pass (2 FLOPs a
    multiply-add).
    """
    columns = store.gather(setting.name)
    tokens = columns["tokens"]
    images = len(tokens)
    counts = zip(*(part.tolist() for part in tokens.unique(return_counts=True)), strict=True)
    flops = sum(n * subject.model.config.flops(t, setting.patch_size) for t, n in counts)
    row: dict[str, Any] = {
        "setting": setting.name,
        "set": set_name,
        "resolution": round(setting.side),
        "patch_size": setting.patch_size,
        **({} if setting.stride is None else {"stride": setting.stride}),
        "tokens": setting.tokens,
        "protocol": setting.protocol,
        "images": images,
        "tokens_per_image": int(tokens.sum()) / images,
        "gflops_per_image": flops / images / 1e9,
    }
    shared: dict[str, np.ndarray] = {}
    unknown = torch.full((images,), -1)
    arrays = {"place": columns["place"], "label": columns.get("label", unknown), "tokens": tokens}
    for number, evaluator in enumerate(subject.evaluators):
        start = f"{number}/"
        own = {name.removeprefix(start): c for name, c in columns.items() if name.startswith(start)}
        own["place"] = columns["place"]
        for name, value in evaluator.summarise(own):
            if isinstance(value, np.ndarray):
                shared[name] = value
            elif isinstance(value, Tensor):
                arrays[name] = value
            else:
                row[name] = value
    return Summary(row, {name: tensor.numpy() for name, tensor in arrays.items()}, shared)


class _Progress:
    """A bar in a terminal, and elsewhere now and then a line; a context manager."""

    def __init__(self, display: Display, store: ChunkStore, chunks: Sequence[range], settings: int) -> None:
        self.display, self.store, self.chunks, self.settings = display, store, chunks, settings
        self.total = len(chunks[-1]) + chunks[-1].start
        self.bar = Bar(display.console, "images", self.total, transient=True)
        self.said = time.monotonic()

    def __enter__(self) -> "_Progress":
        self.bar.__enter__()
        self.update()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.__exit__()

    def update(self) -> None:
        """Look how far all ranks are."""
        if self.bar.shown or time.monotonic() >= self.said + SAY_EVERY:
            done = sum(len(self.chunks[chunk]) for chunk in self.store.written())
            self.bar.update(done)
            if not self.bar.shown:
                self.said = time.monotonic()
                self.display.say(f"{done} of {self.total} images at {self.settings} settings")
