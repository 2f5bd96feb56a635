"""Packed batches by grain, whose classes exist only where grain is installed."""

from collections.abc import Iterator
from functools import partial

import grain as library  # pyright: ignore[reportMissingImports]
import numpy as np

from pipelines.pack import Packed, pack
from pipelines.pictures import Decoder
from pipelines.sets import LABEL_BYTES


class Packing(library.IterDataset):
    """Packs the pictures of its parent."""

    def __init__(self, parent: library.IterDataset) -> None:
        super().__init__(parent)

    def __iter__(self) -> library.DatasetIterator:
        return PackingIterator(iter(self._parent))


class PackingIterator(library.DatasetIterator):
    """An iterator as grain wants them; its place is not saved."""

    def __init__(self, parent: library.DatasetIterator) -> None:
        super().__init__(parent)
        self.batches = pack(parent)

    def __next__(self) -> Packed:
        return next(self.batches)

    def get_state(self) -> dict:
        return {}

    def set_state(self, state: dict) -> None:
        pass


def show(decoder: Decoder, record: bytes) -> tuple[np.ndarray, int]:
    return decoder.show(record[LABEL_BYTES:]), int.from_bytes(record[:LABEL_BYTES], "little")


def batches(paths: list[str], decoder: Decoder, workers: int) -> Iterator[Packed]:
    records = library.MapDataset.source(library.sources.ArrayRecordDataSource(paths))
    # Threads of its own gain nothing on one core.
    pictures = records.map(partial(show, decoder)).to_iter_dataset(library.ReadOptions(0, 0))
    packed = Packing(pictures)
    if workers:
        packed = packed.mp_prefetch(library.MultiprocessingOptions(num_workers=workers))
    return iter(packed)
