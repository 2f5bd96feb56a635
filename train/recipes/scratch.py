"""A recipe for your own images, from new weights."""

from pathlib import Path

from packvit.data import AugmentConfig, DataConfig
from packvit.models.presets import preset
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.step.optim import OptimConfig


def scratch() -> Config:
    """Your own images, from new weights: a ViT-Ti for patch sizes 12 to 32 at 96 to 224 pixels.

    packvit shards write PHOTOS shards --val-fraction 0.1
    packvit train scratch --data.shards shards/train --data.val-shards shards/val --eval.every 500

    A GPU takes about 180 images a step, cropped, flipped and changed by RandAugment; blocks are skipped with
    a probability of up to 0.1. The stored patch embedding is as large as the largest patch. --model.width 384
    --model.heads 6 makes it a ViT-S. With fewer than about ten thousand images it is better to start with a
    trained model: packvit train finetune. --dry-run says how long training takes on your machine; on a CPU,
    --packing.sequences 4 makes steps an eighth as long.
    """
    return Config(
        run_dir=Path("runs/scratch"),
        data=DataConfig(augment=AugmentConfig(randaugment_ops=2, randaugment_magnitude=9)),
        views=ViewsConfig(
            patch_sizes=(12, 16, 24, 32),
            resolution=ResolutionConfig(low=96, high=224, distribution="uniform"),
            crop=0.35,
            crop_aspect=4 / 3,
            flip=0.5,
        ),
        packing=PackingConfig(seq_len=512, sequences=32),
        # Ahead of every table at the resolutions of training and beyond them (docs/studies.md).
        model=preset(
            "Ti", patch_buffer=32, drop_path=0.1, pos_embed="rope_2d", pos_coords="fractional_aspect"
        ),
        optim=OptimConfig(lr=1e-3, warmup=500),
        train=TrainConfig(steps=10_000, label_smoothing=0.1, ema=0.999),
    )
