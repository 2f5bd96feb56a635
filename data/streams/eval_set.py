"""A validation set that can be shown whole at any resolution and patch size.

Headers are read once; every (resolution, patch size) then packs the same samples anew, each image
exactly once, and decodes them in the order of the packed batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch.utils.data import Dataset

from packvit.common.ranks import ALONE, Ranks
from packvit.data.samples.cut import cut_views
from packvit.data.samples.decode import decode_sample, read_header
from packvit.data.samples.sample import Header, Planned, Reference, describe_skipped
from packvit.data.samples.targets import Target, collate_targets
from packvit.data.shards.fetch import FETCH, FetchConfig
from packvit.data.shards.paths import ShardSet
from packvit.data.shards.redact import redact
from packvit.data.shards.shard import BadSample, BadShard, Shard
from packvit.data.streams.loader import load_in_order
from packvit.data.streams.stream import LoadedBatch
from packvit.packing import PackedBatch, PackingConfig, full_view, pack_lengths

NO_TARGETS: Mapping[str, Target] = {}


class EvalSet:
    """The samples of some shards.

    Args:
        patterns: as `data.val_shards`.
        targets: kinds that every sample must come with, by name; samples without them are skipped.
        fetch: how shards that are not local tar files are fetched.

    Attributes:
        headers: of the samples that can be used.
        skipped: {"shard", "key", "reason"} of the others; failures to decode come with the batches.

    Raises:
        ValueError: no shard matches, or no image can be used.
    """

    def __init__(
        self,
        patterns: str | Sequence[str],
        targets: Mapping[str, Target] = NO_TARGETS,
        fetch: FetchConfig = FETCH,
    ) -> None:
        self.shards = ShardSet.find(patterns, fetch)
        self.targets = targets
        self.headers: list[Header] = []
        self.skipped: list[dict] = []
        for number in range(len(self.shards)):
            try:
                self._read_headers(number, self.shards.open(number))
            except BadShard as error:
                self.skipped.append(describe_skipped(error))
        if not self.headers:
            why = f": {self.skipped[0]['reason']}" if self.skipped else ", which are empty"
            raise ValueError(
                f"no usable image in {len(self.shards)} shards ({redact(self.shards.paths[0])}, ...){why}"
            )

    def _read_headers(self, number: int, shard: Shard) -> None:
        self.skipped += [{"shard": redact(shard.path), "key": None, "reason": p} for p in shard.problems]
        for member in range(len(shard)):
            try:
                for kind in self.targets.values():
                    kind.read(shard, member)
                self.headers.append(read_header(shard, Reference(0, number, member, 0)))
            except (BadSample, BadShard) as error:
                self.skipped.append(describe_skipped(error))

    def batches(
        self,
        resolution: float | None,
        patch_size: int,
        packing: PackingConfig,
        workers: int = 0,
        ranks: Ranks = ALONE,
    ) -> Iterator[LoadedBatch]:
        """This rank's share of the samples, whole, on its device; sequences are as long as the longest view
        needs.

        The batches of all ranks together hold every sample once; ranks differ by at most one batch.
        """
        samples = [
            Planned(header, full_view(header.native_size, patch_size, resolution)) for header in self.headers
        ]
        lengths = [sample.view.num_tokens for sample in samples]
        seq_len = max(packing.seq_len, *lengths)
        sequences = pack_lengths(lengths, seq_len, packing.whole_views, packing.lookahead)
        size = packing.sequences
        groups = [
            [[samples[i] for i in contents] for contents in sequences[start : start + size]]
            for start in range(0, len(sequences), size)
        ]
        own = _EvalBatches(self, groups[ranks.rank :: ranks.world_size], seq_len)
        return load_in_order(own, workers, ranks.device)

    def load(self, sequences: Sequence[Sequence[Planned]], seq_len: int) -> LoadedBatch:
        """One batch of whole samples, decoded."""
        skipped: list[dict] = []
        packed = []
        for sequence in sequences:
            images = []
            for header, view in ((sample.header, sample.view) for sample in sequence):
                try:
                    shard = self.shards.open(header.reference.shard)
                    images += cut_views(decode_sample(shard, header, [view], self.targets), self.targets)
                except (BadSample, BadShard) as error:
                    skipped.append(describe_skipped(error))
            packed.append(images)
        collate = partial(collate_targets, self.targets)
        batch = PackedBatch.build(packed, seq_len, collate=collate)
        return LoadedBatch(batch, batch.facts(), skipped=skipped)


class _EvalBatches(Dataset):
    """Batch i is group i of sequences, loaded."""

    def __init__(self, images: EvalSet, groups: list[list[list[Planned]]], seq_len: int) -> None:
        self.images = images
        self.groups = groups
        self.seq_len = seq_len

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> LoadedBatch:
        return self.images.load(self.groups[index], self.seq_len)
