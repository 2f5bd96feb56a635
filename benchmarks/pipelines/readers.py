"""Packed batches by packvit and by each of its peers, at the setting that is fastest for it.

Peers read in the order of their files, without shuffling; packvit shuffles the samples of a shard. Their
batches are packed where they are read: in the worker, if there is one.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from packvit.data import DataConfig, DataPlan, TrainLoader, expand_shards
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig
from packvit.packing.images import files as image_files
from pipelines.pack import HIGH, LOW, PATCH, SEQ_LEN, SEQUENCES, Packed, pack
from pipelines.pictures import DECODERS, Decoder


class Task(NamedTuple):
    """What is read and how.

    place: a folder, s3://bucket/folder or, for webdataset, the URL of that folder.
    names: its files.
    workers: processes that read; 0: this one.
    cache: an empty folder.
    """

    place: str
    names: list[str]
    workers: int
    cache: str

    @property
    def paths(self) -> list[str]:
        return [f"{self.place}/{name}" for name in self.names]


class Counts(NamedTuple):
    """Of one batch."""

    images: int
    tokens: int


def packvit(task: Task, decoder: Decoder) -> Iterator[Counts]:
    if decoder is DECODERS["draft"]:
        image_files.simplejpeg = None
    os.environ["PACKVIT_CACHE"] = task.cache
    shards = tuple(expand_shards(task.place))
    resize = "torch" if decoder is DECODERS["best"] else "pillow"
    data = DataConfig(shards, streams=1, workers=task.workers, shuffle_shards=1, resize=resize)
    views = ViewsConfig((PATCH,), resolution=ResolutionConfig(LOW, HIGH, "uniform"))
    packing = PackingConfig(seq_len=SEQ_LEN, sequences=SEQUENCES, balance=4)
    for loaded in TrainLoader(DataPlan(data, views, packing, targets={"label": data.class_target(None)})):
        stats = loaded.batch.stats()
        yield Counts(stats.images, stats.tokens)


class Packing(IterableDataset):
    """Packs what (JPEG, label) of an iterable show."""

    def __init__(self, samples: Iterable[tuple[bytes, int]], decoder: Decoder) -> None:
        self.samples, self.decoder = samples, decoder

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        for packed in pack((self.decoder.show(data), label) for data, label in self.samples):
            yield tuple(map(torch.from_numpy, packed))


def by_torch(samples: Iterable[tuple[bytes, int]], decoder: Decoder, workers: int) -> Iterator[Counts]:
    """torch's DataLoader, which hands tensors over in shared memory."""
    for batch in DataLoader(Packing(samples, decoder), batch_size=None, num_workers=workers):
        yield count(Packed(*(part.numpy() for part in batch)))


def count(packed: Packed) -> Counts:
    return Counts(len(packed.labels), int(np.count_nonzero(packed.image_index >= 0)))


def webdataset(task: Task, decoder: Decoder) -> Iterator[Counts]:
    from webdataset.compat import WebDataset

    samples: Any = WebDataset(task.paths, shardshuffle=False, empty_check=False)
    return by_torch(samples.to_tuple("jpg", "cls").map_tuple(bytes, int), decoder, task.workers)


class LitPictures:
    """(JPEG, label) of litData's samples."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        for sample in self.dataset:
            yield sample["image"], sample["label"]


def litdata(task: Task, decoder: Decoder) -> Iterator[Counts]:
    from litdata import StreamingDataset  # pyright: ignore[reportMissingImports]
    from litdata.streaming import downloader  # pyright: ignore[reportMissingImports]

    url = os.environ["AWS_ENDPOINT_URL"] if task.place.startswith("s3://") else None
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the server here has no certificate
    dataset = StreamingDataset(task.place, task.cache, storage_options=url and {"endpoint_url": url})
    return by_torch(LitPictures(dataset), decoder, task.workers)


def grain(task: Task, decoder: Decoder) -> Iterator[Counts]:
    from pipelines.grains import batches

    return map(count, batches(task.paths, decoder, task.workers))


class Contestant(NamedTuple):
    """One library with one decoder.

    batches: reads a task.
    decoder: one of DECODERS.
    set: which of the sets it reads.
    module: what has to be there.
    stores: whether it reads from S3.
    warm: batches before those that count. packvit's packer chooses among pictures that wait, and its first
        batches hold fewer and larger ones.
    """

    library: str
    batches: Callable[[Task, Decoder], Iterator[Counts]]
    decoder: str
    set: str
    module: str
    stores: bool = True
    warm: int = 1


WARM = 15
CONTESTANTS = {
    "packvit": Contestant("packvit", packvit, "best", "tars", "packvit", warm=WARM),
    "packvit-pillow": Contestant("packvit", packvit, "simplejpeg", "tars", "packvit", warm=WARM),
    "packvit-draft": Contestant("packvit", packvit, "draft", "tars", "packvit", warm=WARM),
    "webdataset": Contestant("webdataset", webdataset, "pillow", "tars", "webdataset"),
    "webdataset-best": Contestant("webdataset", webdataset, "best", "tars", "webdataset"),
    "litdata": Contestant("litData", litdata, "torchvision", "chunks", "litdata"),
    "litdata-best": Contestant("litData", litdata, "best", "chunks", "litdata"),
    "grain": Contestant("grain, ArrayRecord", grain, "pillow", "records", "grain", stores=False),
    "grain-best": Contestant("grain, ArrayRecord", grain, "best", "records", "grain", stores=False),
}
