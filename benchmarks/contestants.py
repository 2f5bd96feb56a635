"""What benchmarks/model.py compares: models that train on the same images, and the settings they may have."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch, PackedImage, pack_lengths

P, CLASSES, SEED = 16, 1000, 0
WIDTH, DEPTH, HEADS = 192, 12, 3
TIMM = {"patch_size": P, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "global_pool": "avg"}
LIKE_PEERS = {"pool": "mean", "qk_norm": "none", "mlp": "gelu"}
VIT_PYTORCH = {"dim": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp_dim": 4 * WIDTH}
FLOOR = "timm ViT, all of one size"
PADDED, SORTED = "timm NaFlexViT, padded", "timm NaFlexViT, sorted"
GROUPED = "vit-pytorch NaViT, greedy groups"
Step = Callable[[], Tensor]  # one forward pass over a part of the images; gives the sum of their losses
Made = tuple[nn.Module, list[Step]]  # a model and the forward passes of one training step


def draw_images(count: int) -> list[np.ndarray]:
    """uint8 images [height, width, 3], sides multiples of the patch size, at most 256 tokens.

    The side of the square of the same area is N(160, 60) cut to 64..256, the aspect ratio exp(N(0, 0.35)).
    """
    rng = np.random.default_rng(SEED)
    cells = np.clip(rng.normal(160, 60, count), 64, 256) / P
    rows = np.maximum(1, np.round(cells * np.exp(rng.normal(0, 0.35, count)) ** 0.5)).astype(int)
    cols = np.maximum(1, np.floor(cells**2 / rows)).astype(int)
    return [rng.integers(0, 256, (r * P, c * P, 3), np.uint8) for r, c in zip(rows, cols, strict=True)]


def grid_of(image: np.ndarray) -> tuple[int, int]:
    """Rows and columns of patches."""
    return image.shape[0] // P, image.shape[1] // P


def tokens_of(image: np.ndarray) -> int:
    """Patches of an image."""
    return math.prod(grid_of(image))


def patches_of(image: np.ndarray) -> np.ndarray:
    """uint8 [rows * P, cols * P, 3] to [n, P * P * 3]."""
    rows, cols = grid_of(image)
    return np.ascontiguousarray(image.reshape(rows, P, cols, P, 3).swapaxes(1, 2)).reshape(rows * cols, -1)


def positions_of(rows: int, cols: int) -> np.ndarray:
    """(row, col) of every patch of a grid, int32 [rows * cols, 2]."""
    return np.stack(np.divmod(np.arange(rows * cols), cols), 1).astype(np.int32)


def loss_of(logits: Tensor) -> Tensor:
    """Sum of cross-entropies against class 0."""
    return F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long), reduction="sum")


def pack(images: list[np.ndarray], seq_len: int, rows: int) -> tuple[list[int], list[PackedBatch]]:
    """The order in which the images are packed, and batches of `rows` sequences."""
    sequences = pack_lengths([tokens_of(image) for image in images], seq_len)
    items = [
        PackedImage({(P, P): patches_of(i)}, positions_of(*grid_of(i)), grid_of(i), (P, P), i.shape[:2])
        for i in images
    ]
    batches = [
        PackedBatch.build([[items[i] for i in row] for row in sequences[start : start + rows]], seq_len)
        for start in range(0, len(sequences), rows)
    ]
    return [i for row in sequences for i in row], batches


def pad(images: list[np.ndarray]) -> dict[str, Tensor]:
    """Images as timm's NaFlexViT takes them, padded to the longest."""
    longest = max(map(tokens_of, images))
    patches = torch.zeros(len(images), longest, P * P * 3)
    coords = torch.zeros(len(images), longest, 2, dtype=torch.long)
    valid = torch.zeros(len(images), longest, dtype=torch.bool)
    for i, image in enumerate(images):
        n = tokens_of(image)
        patches[i, :n] = torch.from_numpy(patches_of(image)) / 127.5 - 1
        coords[i, :n] = torch.from_numpy(positions_of(*grid_of(image)))
        valid[i, :n] = True
    # timm wants the mask also where nothing is padded.
    return {"patches": patches, "patch_coord": coords, "patch_valid": valid}


def packvit_steps(images: list[np.ndarray], seq_len: int, rows: int, **config) -> Made:
    """Packed sequences, `rows` of them at a time."""
    config = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "num_classes": CLASSES, **LIKE_PEERS, **config}
    model = PackedViT(ViTConfig(patch_buffer=P, **config))
    _, batches = pack(images, seq_len, rows)
    return model, [lambda batch=batch: loss_of(model(batch)) for batch in batches]


def timm_steps(images: list[np.ndarray], batch: int, key_mask: bool, by_length: bool) -> Made:
    """Batches of images, padded to the longest of each, in arrival order or sorted by length.

    `key_mask` is timm's option of a mask over keys alone instead of one over pairs.
    """
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg  # pyright: ignore

    config = NaFlexVitCfg(**TIMM, pos_embed="factorized", use_key_only_attn_mask=key_mask)
    model = NaFlexVit(config, num_classes=CLASSES)
    ordered = sorted(images, key=tokens_of) if by_length else images
    inputs = [pad(ordered[start : start + batch]) for start in range(0, len(ordered), batch)]
    return model, [lambda part=part: loss_of(model(part)) for part in inputs]


def vit_pytorch_steps(images: list[np.ndarray], group: int, rows: int) -> Made:
    """vit-pytorch's NaViT with its own greedy groups of up to `group` tokens, `rows` groups at a time."""
    from vit_pytorch.na_vit import NaViT, group_images_by_max_seq_len  # pyright: ignore

    largest = max(max(image.shape) for image in images)
    model = NaViT(image_size=largest, patch_size=P, num_classes=CLASSES, **VIT_PYTORCH)
    floats = [torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1 for image in images]
    groups = group_images_by_max_seq_len(floats, patch_size=P, max_seq_len=group)
    parts = [groups[start : start + rows] for start in range(0, len(groups), rows)]
    return model, [lambda part=part: loss_of(model(part)) for part in parts]


def floor_steps(images: list[np.ndarray], batch: int) -> Made:
    """As many tokens in square images of one size, in a plain ViT of timm with mean pooling."""
    from timm.models.vision_transformer import VisionTransformer  # pyright: ignore

    side, count = floor_size(images)
    model = VisionTransformer(img_size=side * P, num_classes=CLASSES, class_token=False, **TIMM)
    parts = torch.randn(count, 3, side * P, side * P).split(batch)
    return model, [lambda part=part: loss_of(model(part)) for part in parts]


def floor_size(images: list[np.ndarray]) -> tuple[int, int]:
    """Patches along a side of the floor's images, near the mean, and their number for as many tokens."""
    total = sum(map(tokens_of, images))
    side = round((total / len(images)) ** 0.5)
    return side, round(total / side**2)


PACKED = [{"seq_len": n, "rows": tokens // n} for n in (512, 1024, 2048) for tokens in (2048, 4096, 8192)]
MASKED = [{"batch": n, "key_mask": key_mask} for n in (4, 8, 16, 32) for key_mask in (False, True)]
GROUPS = [{"group": n, "rows": rows} for n in (256, 288, 384, 512, 1024) for rows in (2, 4, 8, 16)]
# What is swept: {name: (how it is made, its settings)}.
SWEPT: dict[str, tuple[Callable[..., Made], list[dict]]] = {
    "packvit": (packvit_steps, PACKED),
    FLOOR: (floor_steps, [{"batch": n} for n in (4, 8, 16, 32, 64)]),
    PADDED: (partial(timm_steps, by_length=False), MASKED),
    SORTED: (partial(timm_steps, by_length=True), MASKED),
    GROUPED: (vit_pytorch_steps, GROUPS),
}
# packvit's best setting with other layers.
VARIANTS = {
    "packvit, map pooling": {"pool": "map"},
    "packvit, QK norm": {"qk_norm": "rms"},
    "packvit, map pooling and QK norm": {"pool": "map", "qk_norm": "rms"},
    "packvit, these and the tanh GELU (its defaults)": {"pool": "map", "qk_norm": "rms", "mlp": "gelu_tanh"},
}
