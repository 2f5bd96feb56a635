"""Shards in, packed batches out."""

from packvit.data.config import DataConfig
from packvit.data.make.check import check_shards
from packvit.data.make.digits import write_digits
from packvit.data.make.emoji import write_emoji
from packvit.data.make.images import WriteConfig, write_images
from packvit.data.make.scenes import write_scenes
from packvit.data.make.teach import write_with_logits
from packvit.data.make.write import write_shards
from packvit.data.samples.augment import AugmentConfig
from packvit.data.samples.captions import CaptionTarget, read_captions
from packvit.data.samples.corrupt import Corruption, every_corruption, parse_corruptions
from packvit.data.samples.cut import cut_image
from packvit.data.samples.decode import show
from packvit.data.samples.mix import MixConfig, pixel_box
from packvit.data.samples.sample import Mix, Mixing
from packvit.data.samples.targets import ClassTarget, LogitsTarget, Target, TextTarget, collate_targets
from packvit.data.shards.class_names import CLASSES, named_folders, read_class_names, shard_folders
from packvit.data.shards.fetch import FetchConfig
from packvit.data.shards.losses import count_samples
from packvit.data.shards.paths import SHARD_SUFFIXES, ShardSet, expand_shards, find_commands
from packvit.data.shards.redact import redact
from packvit.data.shards.shard import IMAGE_FIELDS, BadSample, BadShard, Shard
from packvit.data.shards.source import is_remote
from packvit.data.streams.counts import SampleCounts
from packvit.data.streams.eval_set import Alter, EvalSet, Piece, Way
from packvit.data.streams.loader import TrainLoader, end_workers, merge_states
from packvit.data.streams.plan import DataPlan
from packvit.data.streams.shared import SHARED, check_shared
from packvit.data.streams.stream import DataError, LoadedBatch, Stream
from packvit.packing import pack_images

__all__ = [
    "CLASSES",
    "IMAGE_FIELDS",
    "SHARD_SUFFIXES",
    "SHARED",
    "Alter",
    "AugmentConfig",
    "BadSample",
    "BadShard",
    "CaptionTarget",
    "ClassTarget",
    "Corruption",
    "DataConfig",
    "DataError",
    "DataPlan",
    "EvalSet",
    "FetchConfig",
    "LoadedBatch",
    "LogitsTarget",
    "Mix",
    "MixConfig",
    "Mixing",
    "Piece",
    "SampleCounts",
    "Shard",
    "ShardSet",
    "Stream",
    "Target",
    "TextTarget",
    "TrainLoader",
    "Way",
    "WriteConfig",
    "check_shards",
    "check_shared",
    "collate_targets",
    "count_samples",
    "cut_image",
    "end_workers",
    "every_corruption",
    "expand_shards",
    "find_commands",
    "is_remote",
    "merge_states",
    "named_folders",
    "pack_images",
    "parse_corruptions",
    "pixel_box",
    "read_captions",
    "read_class_names",
    "redact",
    "shard_folders",
    "show",
    "write_digits",
    "write_emoji",
    "write_images",
    "write_scenes",
    "write_shards",
    "write_with_logits",
]
