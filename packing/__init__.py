"""Views, samplers, packers and the batch type. Knows no other folder."""

from packvit.packing.balance import Dealer
from packvit.packing.batch import BatchStats, PackedBatch, PackedImage
from packvit.packing.batcher import Batcher
from packvit.packing.flat import FlatBatch
from packvit.packing.packer import Packer
from packvit.packing.policy import PackingConfig, make_packer, pack_lengths
from packvit.packing.samplers import draw_view, full_view, reshow
from packvit.packing.view import View, derive_seed
from packvit.packing.views_config import CurriculumConfig, DropConfig, ResolutionConfig, ViewsConfig, views_at

__all__ = [
    "BatchStats",
    "Batcher",
    "CurriculumConfig",
    "Dealer",
    "DropConfig",
    "FlatBatch",
    "PackedBatch",
    "PackedImage",
    "Packer",
    "PackingConfig",
    "ResolutionConfig",
    "View",
    "ViewsConfig",
    "derive_seed",
    "draw_view",
    "full_view",
    "make_packer",
    "pack_lengths",
    "reshow",
    "views_at",
]
