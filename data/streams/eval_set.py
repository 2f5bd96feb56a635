"""A set of images that can be shown whole in any way, every image decoded once for all of them.

Headers are read once. The samples keep the order of the shards and are cut into chunks of consecutive
samples, which ranks and workers share. A worker decodes an image of a chunk, shows it in every requested way,
and hands over a batch as soon as the images of one way have enough tokens. Such a batch is a single sequence,
just long enough for its images, so there is no padding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from packvit.common.engine.engine import Engine
from packvit.data.samples.cut import cut_views
from packvit.data.samples.decode import TRAINING, decode_sample, read_sample, show
from packvit.data.samples.sample import Decoded, Header, describe_skipped
from packvit.data.samples.targets import Target, collate_targets
from packvit.data.shards.class_names import read_class_names, shard_folders
from packvit.data.shards.fetch import FETCH, FetchConfig
from packvit.data.shards.paths import ShardSet
from packvit.data.shards.redact import redact
from packvit.data.shards.shard import BadSample, BadShard
from packvit.data.streams.headers import Scanner
from packvit.data.streams.loader import CPU, load_in_order
from packvit.packing import PackedBatch, PackedImage, View, decode_upright, derive_seed

NO_TARGETS: Mapping[str, Target] = {}
# Changes the decoded pixels of an image, uint8 [H, W, 3], whose key is given, before views of it are shown.
Alter = Callable[[np.ndarray, str], np.ndarray]


class Way(Protocol):
    """A way to show images: `packvit.evaluate.Setting` is one."""

    def view(self, native: tuple[int, int]) -> View:
        """How an image of `native` (height, width) pixels is shown."""
        ...


@dataclass
class Piece:
    """Some images of a chunk, shown in one way.

    Args:
        chunk: number of the chunk among the requested ones.
        way: number of the way.
        places: int64 [n], the place of each image of the batch in the set; ascending.
        batch: one sequence of n images, in this order; n is 0 if none could be used.
        last: whether this is the last piece of its chunk.
        skipped: {"shard", "key", "reason"} of the chunk's images that cannot be used; with the last piece.
    """

    chunk: int
    way: int
    places: Tensor
    batch: PackedBatch
    last: bool = False
    skipped: list[dict] = field(default_factory=list)


class EvalSet:
    """The samples of some shards.

    Args:
        patterns: like `data.val_shards`.
        targets: kinds of targets that every sample must have, by name; samples without them are skipped.
        fetch: how shards that are not local tar files are fetched.
        alter: changes every image before it is shown; its repr says how. Views are drawn for the altered
            size.
        as_training: decode a JPEG separately for each view, at the smallest scale that covers it, and resize
            as training does by default, so that images look as in training. Otherwise an image is decoded
            whole, and a view depends on nothing else.
        engine: reads the headers, one job a shard; by default this process does.

    Attributes:
        headers: headers of the samples that can be used.
        skipped: {"shard", "key", "reason"} of the others; decoding failures come with the pieces.
        unknown_labels: those of `skipped` whose labels are not among the classes of a target.

    Raises:
        ValueError: no shard matches, no image can be used, or a machine of the engine lacks a shard.
    """

    def __init__(
        self,
        patterns: str | Sequence[str],
        targets: Mapping[str, Target] = NO_TARGETS,
        fetch: FetchConfig = FETCH,
        alter: Alter | None = None,
        as_training: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self.shards = ShardSet.find(patterns, fetch)
        self.targets = targets
        self.alter = alter
        self.as_training = as_training
        self.headers: list[Header] = []
        self.skipped: list[dict] = []
        self.unknown_labels: list[dict] = []
        for part in Scanner(self.shards, targets).scan_all(engine):
            self.headers += part.headers
            self.skipped += part.skipped
            self.unknown_labels += part.unknown_labels
        if not self.headers:
            why = f": {self.skipped[0]['reason']}" if self.skipped else ", which are empty"
            raise ValueError(f"no usable image in {self.described}{why}")

    def altered(self, alter: Alter) -> "EvalSet":
        """The same samples, changed by `alter`; nothing is read again."""
        other = copy(self)
        other.alter = alter
        return other

    def without(self, reasons: Mapping[int, str]) -> "EvalSet":
        """The same samples except for some, which are skipped.

        Args:
            reasons: why a sample is left out, by its place in `headers`.
        """
        other = copy(self)
        other.headers = [header for place, header in enumerate(self.headers) if place not in reasons]
        left_out = (
            BadSample(self.shards.paths[header.reference.shard], header.key, reasons[place])
            for place, header in enumerate(self.headers)
            if place in reasons
        )
        other.skipped = [*self.skipped, *map(describe_skipped, left_out)]
        return other

    def some(self, number: int) -> "EvalSet":
        """So many of the samples, spread evenly over the set; all if it has no more or `number` is 0."""
        total = len(self.headers)
        if not 0 < number < total:
            return self
        other = copy(self)
        other.headers = [self.headers[place * total // number] for place in range(number)]
        return other

    @property
    def described(self) -> str:
        """Its shards, for messages."""
        return f"{len(self.shards)} shards ({redact(self.shards.paths[0])}, ...)"

    def fingerprint(self) -> dict[str, Any]:
        """A fingerprint of the set: its shards, the samples that can be used, and how they are altered."""
        samples = derive_seed(*(f"{header.key}\t{header.native_size}" for header in self.headers))
        return {
            "shards": self.shards.fingerprint() | {"digest": self.shards.digest()},
            "samples": f"{samples:032x}",
            "targets": {name: repr(kind) for name, kind in self.targets.items()},
            "alter": repr(self.alter),
            "as_training": self.as_training,
        }

    def class_names(self) -> list[str] | None:
        """The list in `classes.json` beside the first shard, as `packvit shards write` leaves it, or None."""
        folders = shard_folders(self.shards.paths[:1])
        return next((read_class_names(folder, self.shards.fetch) for folder in folders), None)

    def pieces(
        self,
        ways: Sequence[Way],
        tokens: int,
        chunks: Sequence[range],
        workers: int = 0,
        device: torch.device = CPU,
    ) -> Iterator[Piece]:
        """The images of some chunks, each shown in every way.

        The pieces of a chunk depend on nothing but the chunk, and come in the order of the places in each
        way. Chunks come in any order, and those of several workers mixed.

        Args:
            tokens: number of tokens in a batch; an image with more has a batch of its own.
            chunks: the places of their samples.
            workers: number of processes that decode.
            device: device on which batches are wanted.
        """
        return load_in_order(_Pieces(self, ways, tokens, chunks), workers, device)

    def load(self, header: Header, ways: Sequence[Way]) -> list[PackedImage]:
        """A sample in every way, decoded once unless images are shown as in training.

        Raises:
            BadSample, BadShard: it cannot be used.
        """
        shard = self.shards.open(header.reference.shard)
        if self.as_training:
            views = [way.view(header.native_size) for way in ways]
            decoded = decode_sample(shard, header, views, self.targets, resize=TRAINING)
            return cut_views(decoded, self.targets)
        data, values = read_sample(shard, header, self.targets)
        try:
            pixels = decode_upright(data, header.native_size)
            pixels = pixels if self.alter is None else self.alter(pixels, header.key)
            native = (pixels.shape[0], pixels.shape[1])
            views = [way.view(native) for way in ways]
            targets = [
                {name: kind.follow(values[name], view, native) for name, kind in self.targets.items()}
                for view in views
            ]
        except ValueError as error:
            raise BadSample(shard.path, header.key, str(error)) from error
        image = Image.fromarray(pixels)
        shown = [show(image, view, native) for view in views]
        return cut_views(Decoded(header.key, native, 0, views, shown, targets), self.targets)

    def collate(self, images: Sequence[PackedImage]) -> PackedBatch:
        """One sequence of images, in this order."""
        seq_len = max(1, sum(image.num_tokens for image in images))
        return PackedBatch.build([images], seq_len, collate=partial(collate_targets, self.targets))


class _Pieces(IterableDataset):
    """Every worker takes its share of the chunks, one after the other."""

    def __init__(self, images: EvalSet, ways: Sequence[Way], tokens: int, chunks: Sequence[range]) -> None:
        self.images, self.ways, self.tokens = images, ways, tokens
        self.chunks = list(enumerate(chunks))

    def __iter__(self) -> Iterator[Piece]:
        worker = get_worker_info()
        own = self.chunks[worker.id :: worker.num_workers] if worker else self.chunks
        for number, places in own:
            yield from self._read(number, places)

    def _read(self, number: int, places: range) -> Iterator[Piece]:
        waiting: list[list[tuple[int, PackedImage]]] = [[] for _ in self.ways]
        skipped: list[dict] = []
        for place in places:
            try:
                shown = self.images.load(self.images.headers[place], self.ways)
            except (BadSample, BadShard) as error:
                skipped.append(describe_skipped(error))
                continue
            for way, image in enumerate(shown):
                used = sum(other.num_tokens for _, other in waiting[way])
                if used and used + image.num_tokens > self.tokens:
                    yield self._piece(number, way, waiting[way])
                    waiting[way] = []
                waiting[way].append((place, image))
        last = len(self.ways) - 1
        for way in range(last):
            yield self._piece(number, way, waiting[way])
        yield self._piece(number, last, waiting[last], True, skipped)

    def _piece(
        self,
        number: int,
        way: int,
        waiting: Sequence[tuple[int, PackedImage]],
        last: bool = False,
        skipped: Sequence[dict] = (),
    ) -> Piece:
        places = torch.tensor([place for place, _ in waiting], dtype=torch.int64)
        batch = self.images.collate([image for _, image in waiting])
        return Piece(number, way, places, batch, last, list(skipped))
