"""The learning rate of a step: warm-up, shape and cooldown."""

import math
from collections.abc import Sequence
from typing import assert_never

from torch.optim import Optimizer

from packvit.train.step.optim import OptimConfig


def lr_factor(before: float, after: float, length: float, config: OptimConfig) -> float:
    """Factor in [0, 1] of one step.

    It consists of a linear warm-up, a shape, and a linear cooldown at the end. Shapes are `cosine`, half a
    period down to zero (FlexiViT); `linear` down to zero; `rsqrt`, flat up to the timescale and then
    sqrt(timescale / after) (NaViT); and `constant`.

    Args:
        before, after: progress of the run before and after the step, in the unit of `length`.
        length: length of the whole run in steps, images or tokens.
    """
    factor = min(1.0, after / config.warmup) if config.warmup else 1.0
    progress = min(1.0, max(0.0, (before - config.warmup) / max(1, length - config.warmup)))
    match config.schedule:
        case "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            factor *= 1 - progress
        case "rsqrt":
            factor *= min(1.0, math.sqrt(max(config.timescale, config.warmup, 1) / after))
        case "constant":
            pass
        case _ as unknown:
            assert_never(unknown)
    if config.cooldown:
        factor *= min(1.0, max(0.0, length - before) / config.cooldown)
    return factor


def set_lr(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Set every group's learning rate to its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
