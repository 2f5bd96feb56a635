"""Views, packers, the batch type, and images in memory. Imports no other room."""

from packvit.packing.batch.flat import Flat
from packvit.packing.batch.image import Collated, ImageFacts, Mixed, PackedImage, Ragged, Shape
from packvit.packing.batch.pack import pack_in_order
from packvit.packing.batch.packed_batch import BatchStats, PackedBatch, map_leaves, send, stack
from packvit.packing.images.cut import cut_patches, place_patches
from packvit.packing.images.files import decode_upright, decode_whole, native_size_of, read_image
from packvit.packing.images.pack import pack_images
from packvit.packing.images.pixels import Source, check_list, check_source, to_rgb
from packvit.packing.packers.batches import Batches, squeeze_waiting, waiting_names
from packvit.packing.packers.config import PackingConfig, make_packer, pack_lengths
from packvit.packing.packers.dealer import Dealer
from packvit.packing.packers.packer import Packer
from packvit.packing.views.config import (
    CurriculumConfig,
    ResolutionConfig,
    ViewsConfig,
    views_at,
)
from packvit.packing.views.drop import DropConfig
from packvit.packing.views.grid import fit_grid, largest_grid
from packvit.packing.views.view import (
    View,
    derive_seed,
    draw_again,
    draw_view,
    full_view,
    same_crop,
)

__all__ = [
    "BatchStats",
    "Batches",
    "Collated",
    "CurriculumConfig",
    "Dealer",
    "DropConfig",
    "Flat",
    "ImageFacts",
    "Mixed",
    "PackedBatch",
    "PackedImage",
    "Packer",
    "PackingConfig",
    "Ragged",
    "ResolutionConfig",
    "Shape",
    "Source",
    "View",
    "ViewsConfig",
    "check_list",
    "check_source",
    "cut_patches",
    "decode_upright",
    "decode_whole",
    "derive_seed",
    "draw_again",
    "draw_view",
    "fit_grid",
    "full_view",
    "largest_grid",
    "make_packer",
    "map_leaves",
    "native_size_of",
    "pack_images",
    "pack_in_order",
    "pack_lengths",
    "place_patches",
    "read_image",
    "same_crop",
    "send",
    "squeeze_waiting",
    "stack",
    "to_rgb",
    "views_at",
    "waiting_names",
]
