"""Checks before any work is done: that memory suffices, and that labels are of the model's classes."""

from collections.abc import Sequence

import torch

from packvit.common.device import total_memory
from packvit.data import EvalSet
from packvit.evaluate.setting import Setting
from packvit.models import ViTConfig
from packvit.packing import PackingConfig

# Lower bounds: a pixel in three channels is held as uint8 and as float32; a block holds several values for
# each channel of a token.
BYTES_OF_A_PIXEL, BYTES_OF_A_CHANNEL = 15, 32
LARGEST_PATCH = 1024  # pixels; patches of photographs have 8 to 48
# Where a larger share of the samples has labels that the model does not know, the set is of other classes.
MOST_UNKNOWN = 0.01


def check_settings(model: ViTConfig, settings: Sequence[Setting], device: torch.device) -> None:
    """Refuse what cannot be evaluated.

    Raises:
        ValueError: a patch size is too large, the model's positions do not allow overlapping patches, or a
            single view takes more memory than there is.
    """
    memory = total_memory(device)
    for setting in settings:
        if setting.stride is not None:
            model.check_overlap(f"stride {setting.stride}")
        p = setting.patch_size
        if p > LARGEST_PATCH:
            raise ValueError(f"patch size {p}: a side has at most {LARGEST_PATCH} pixels")
        tokens = mean_tokens(setting)
        if tokens * (BYTES_OF_A_PIXEL * p * p + BYTES_OF_A_CHANNEL * model.width) > memory:
            size = f"resolution {setting.resolution}" if setting.tokens is None else "so many tokens"
            raise ValueError(
                f"a view of {size} at patch size {p} has {tokens} tokens, too many for the "
                f"{memory / 1e9:.0f} GB of memory of this {device.type}: use a lower resolution or a "
                "larger patch size"
            )


def mean_tokens(setting: Setting) -> int:
    """The approximate number of tokens of an image; a view keeps the area for any shape."""
    if setting.stride is None:
        return max(1, round((setting.side / setting.patch_size) ** 2))
    return max(1, round((setting.side - setting.patch_size) / setting.stride + 1) ** 2)


def check_memory(packing: PackingConfig, patch_sizes: Sequence[int]) -> None:
    """Refuse batches that do not fit into this machine's memory, before a process takes all of it.

    Args:
        patch_sizes: patch sizes that are drawn about equally often.

    Raises:
        ValueError: the patches of one full batch, 3 bytes a pixel, do not fit.
    """
    mean = sum(p * p for p in patch_sizes) / len(patch_sizes)
    _check_patches(packing, 3 * packing.sequences * packing.seq_len * mean, patch_sizes, "a batch")


def check_pieces(packing: PackingConfig, settings: Sequence[Setting]) -> None:
    """Refuse the batches of a pass, one of each setting at the same time; raises like `check_memory`."""
    patch_sizes = [setting.patch_size for setting in settings]
    size = 3 * packing.sequences * packing.seq_len * sum(p * p for p in patch_sizes)
    what = "a batch" if len(settings) == 1 else f"for each of {len(settings)} settings a batch"
    _check_patches(packing, size, sorted(set(patch_sizes)), what)


def _check_patches(packing: PackingConfig, size: float, patch_sizes: Sequence[int], what: str) -> None:
    memory = total_memory(torch.device("cpu"))
    if size > memory:
        raise ValueError(
            f"{what} of {packing.sequences} sequences of {packing.seq_len} patches of "
            f"{', '.join(map(str, patch_sizes))} pixels a side takes {size / 1e9:.0f} GB, more than the "
            f"{memory / 1e9:.0f} GB of memory of this cpu: use a lower seq_len, fewer "
            "sequences or smaller patches"
        )


def check_classes(
    images: EvalSet,
    classes: int,
    model: str,
    advice: str = "evaluate on images of the classes that it was trained on",
) -> None:
    """Refuse a set whose labels are of other classes than the model's.

    Args:
        classes: the model's number of classes.
        model: its name, or where the classes come from, for the message.
        advice: what can be done about it.

    Raises:
        ValueError: `classes.json` beside the shards has another number of names, or many samples have labels
            that the model does not know; names one of them.
    """
    names = images.class_names()
    if names is not None and len(names) != classes:
        raise ValueError(
            f"{model} has {classes} classes, but classes.json beside the first of {images.described} names "
            f"{len(names)}: {advice}"
        )
    unknown = images.unknown_labels
    if len(unknown) > MOST_UNKNOWN * (len(unknown) + len(images.headers)):
        raise ValueError(
            f"{model} has {classes} classes, but {len(unknown)} samples of {images.described} have labels of "
            f"other classes, such as {unknown[0]['key']!r}: {unknown[0]['reason']}"
        )
