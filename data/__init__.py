"""Shards in, packed batches out. Knows `packvit.packing` only."""

from packvit.data.augment import AugmentConfig
from packvit.data.check import check_shards
from packvit.data.config import DataConfig
from packvit.data.digits import write_digits
from packvit.data.eval_set import EvalSet
from packvit.data.images import pack_images
from packvit.data.labels import Labels
from packvit.data.loader import DataError, LoadedBatch, TrainLoader, merge_states
from packvit.data.mix import MixConfig
from packvit.data.shards import BadSample, BadShard, Shard, expand_shards
from packvit.data.streams import Stream
from packvit.data.taught import StoredLogits, write_taught
from packvit.data.write import write_images, write_shards

__all__ = [
    "AugmentConfig",
    "BadSample",
    "BadShard",
    "DataConfig",
    "DataError",
    "EvalSet",
    "Labels",
    "LoadedBatch",
    "MixConfig",
    "Shard",
    "StoredLogits",
    "Stream",
    "TrainLoader",
    "check_shards",
    "expand_shards",
    "merge_states",
    "pack_images",
    "write_digits",
    "write_images",
    "write_shards",
    "write_taught",
]
