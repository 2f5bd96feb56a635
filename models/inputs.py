"""What a model is called with: a packed batch, or a list of images, which it packs by itself."""

from collections.abc import Iterable, Sequence

import torch

from packvit.packing import PackedBatch, Source, pack_images

Input = PackedBatch | Iterable[Source]
PatchSizes = int | Sequence[int] | None
Sides = float | Sequence[float] | None


def as_batch(
    given: Input, patch_size: PatchSizes, resolution: Sides, usual: int, device: torch.device
) -> PackedBatch:
    """A batch as it is, and images as one batch on `device`.

    Args:
        given: a batch, or images as `pack_images` takes them.
        patch_size, resolution: of images, as for `pack_images`, and None for each image's native size.
        usual: patch size of images that none is given for.

    Raises:
        ValueError: an image cannot be used; or a patch size or a resolution is given with a packed batch.
    """
    if not isinstance(given, PackedBatch):
        return pack_images(given, usual if patch_size is None else patch_size, resolution).to(device)
    if patch_size is not None or resolution is not None:
        raise ValueError(
            "patch_size and resolution belong to a list of images: those of a PackedBatch have their own"
        )
    return given
