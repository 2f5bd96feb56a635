"""A validation set that can be shown whole at any resolution and patch size.

Headers are read once; every (resolution, patch size) then packs the same samples anew, each image
exactly once, and decodes them in the order of the packed batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from packvit.data.labels import Labels
from packvit.data.loader import HandedOver, LoadedBatch
from packvit.data.samples import decode_sample, describe_skipped
from packvit.data.shards import BadSample, BadShard, Shard, expand_shards
from packvit.packing import PackedBatch, PackingConfig, View, full_view, pack_lengths


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample whose header could be read."""

    shard: int
    member: int
    native_size: tuple[int, int]


class EvalSet:
    """The samples of some shards.

    Args:
        shards: as `data.val_shards`.
        num_classes: samples without a label in 0..num_classes-1 are skipped; None accepts any.
        label_field: as `data.label_field`.

    Attributes:
        entries: samples with a readable header and, with num_classes, a label.
        skipped: {"shard", "key", "reason"} of the others; failures to decode come with the batches.
    """

    def __init__(
        self, shards: str | Sequence[str], num_classes: int | None = None, label_field: str = "cls"
    ) -> None:
        self.paths = expand_shards(shards)
        self.labels = Labels(label_field, classes=num_classes)
        self.entries: list[Entry] = []
        self.skipped: list[dict] = []
        for index, path in enumerate(self.paths):
            try:
                shard = Shard.open(path)
            except BadShard as error:
                self.skipped.append(describe_skipped(error))
                continue
            self.skipped += [{"shard": path, "key": None, "reason": problem} for problem in shard.problems]
            for member in range(len(shard)):
                try:
                    self.labels.read(shard, member)
                    self.entries.append(Entry(index, member, shard.native_size(member)))
                except (BadSample, BadShard) as error:
                    self.skipped.append(describe_skipped(error))
        if not self.entries:
            why = f": {self.skipped[0]['reason']}" if self.skipped else ", which are empty"
            raise ValueError(
                f"no usable image in the {len(self.paths)} validation shards ({self.paths[0]}, ...){why}"
            )

    def batches(
        self,
        resolution: float | None,
        patch_size: int,
        packing: PackingConfig,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[LoadedBatch]:
        """Rank `rank`'s share of the samples, whole; sequences are as long as the longest view needs.

        The batches of all ranks together hold every sample once; ranks differ by at most one batch.
        """
        views = [full_view(entry.native_size, patch_size, resolution) for entry in self.entries]
        lengths = [view.num_tokens for view in views]
        seq_len = max(packing.seq_len, *lengths)
        sequences = pack_lengths(lengths, seq_len, packing.whole_views, packing.lookahead)
        size = packing.sequences
        groups = [sequences[start : start + size] for start in range(0, len(sequences), size)]
        load = partial(self._load, views=views, seq_len=seq_len)
        loader = DataLoader(
            _Batches(groups[rank::world_size], load),
            batch_size=None,
            num_workers=workers,
            collate_fn=HandedOver.pack,
            generator=torch.Generator(),
        )
        return (handed.unpack() for handed in loader)

    def _load(self, group: list[list[int]], views: list[View], seq_len: int) -> LoadedBatch:
        skipped: list[dict] = []
        rows = []
        for sequence in group:
            row = []
            for index in sequence:
                entry = self.entries[index]
                try:
                    shard = Shard.open(self.paths[entry.shard])
                    sample = decode_sample(
                        shard, entry.member, [views[index]], entry.native_size, 0, self.labels
                    )
                    row += sample.cut()
                except (BadSample, BadShard) as error:
                    skipped.append(describe_skipped(error))
            rows.append(row)
        return LoadedBatch(PackedBatch.build(rows, seq_len), skipped=skipped)


class _Batches(Dataset):
    """Batch i is group i, loaded."""

    def __init__(self, groups: list[list[list[int]]], load: Callable[[list[list[int]]], LoadedBatch]) -> None:
        self.groups = groups
        self.load = load

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> LoadedBatch:
        return self.load(self.groups[index])
