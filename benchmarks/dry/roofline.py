"""A step's time on an H200, predicted from what it computes and moves.

Assumed, for T = 65,536 tokens in bf16 autocast: matrix products run at 87 % of 790 TFLOP/s, the measured
rate of large squares; everything else in a block is bound by memory, at 85 % of 4.8 TB/s; attention takes 2.5
times its forward FLOPs in the backward pass and runs at the rates of FlashAttention 2 on Hopper; a step that
waits for the device leaves it idle for 4 ms, one that does not never does; nothing overlaps. AdamW reads and
writes 28 bytes a parameter, the norm and clipping of the gradient 12, the copies of weights in bf16 6.
"""

from typing import Any

import numpy as np

from packvit.models import ViTConfig

MATMUL, EFFICIENCY = 790e12, 0.87
BANDWIDTH, SHARE = 4.8e12, 0.85
ATTENTION_FORWARD, ATTENTION_BACKWARD = 220e12, 165e12
BYTES_A_PARAMETER = 28 + 12 + 6
IDLE_MS = 4.0


def parameters(config: ViTConfig) -> int:
    """Weights of the blocks, which are nearly all."""
    return config.depth * config.linear_flops(1) // 2


def predict(
    config: ViTConfig, segments: np.ndarray, images: int, traffic: dict[str, float], waits: int
) -> dict[str, Any]:
    """Milliseconds of a step by what they go to, and MFU against the matmul rate.

    Args:
        segments: lengths of all segments, which fill the batch.
        images: in the batch.
        traffic: GB of a block of width 768 without matrix products, `block`, and of all else, `ends`.
        waits: of the host for the device in a step.
    """
    tokens, squares = int(segments.sum()), int((segments**2).sum())
    useful = 3 * (config.flops(1, 16) * tokens - config.depth * config.attention_flops(tokens))
    useful += 3 * config.depth * config.attention_flops(squares)
    forward = config.depth * config.attention_flops(squares)
    memory, wide = BANDWIDTH * SHARE, config.width / 768
    parts = {
        "products": 3 * config.depth * config.linear_flops(tokens) / (MATMUL * EFFICIENCY),
        "memory": traffic["block"] * 1e9 * wide * config.depth / memory,
        "attention": forward / ATTENTION_FORWARD + 2.5 * forward / ATTENTION_BACKWARD,
        "ends": traffic["ends"] * 1e9 * wide / memory,
        "optimizer": parameters(config) * BYTES_A_PARAMETER / memory,
        "idle": IDLE_MS / 1e3 if waits else 0.0,
    }
    seconds = sum(parts.values())
    return {
        "ms": {name: round(part * 1e3, 1) for name, part in parts.items()},
        "ms_a_step": round(seconds * 1e3, 1),
        "mfu": round(useful / seconds / MATMUL, 3),
        "images_per_s": round(images / seconds),
    }
