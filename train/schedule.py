"""Learning rate as a function of the step, as a factor of the peak."""

import math

from packvit.train.config import OptimConfig


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Factor in [0, 1] for step 0..steps-1.

    `cosine`: linear warm-up, then half a cosine to zero (FlexiViT). `rsqrt`: linear warm-up, flat up to
    `rsqrt_timescale`, then sqrt(timescale / step), and a linear cooldown at the end (NaViT).
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        if step < config.warmup_steps:
            return warmup
        progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))
    timescale = max(config.rsqrt_timescale, config.warmup_steps, 1)
    factor = warmup * min(1.0, math.sqrt(timescale / (step + 1)))
    if config.cooldown_steps:
        factor *= min(1.0, (steps - step) / config.cooldown_steps)
    return factor
