"""Recipes that start with a model: fine-tuning, fast transfer, a linear probe."""

from pathlib import Path

from packvit.evaluate import EvalConfig
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.step.optim import OptimConfig


def finetune() -> Config:
    """Any model on your own shards, with all weights trained; one patch size, or several
    (--views.patch-sizes).

    packvit train finetune --model MODEL --model.num-classes N --data.shards SHARDS --data.val-shards VAL

    Learning rates fall by 0.75 from block to block, as in BEiT (arXiv 2106.08254, A).
    """
    return Config(
        run_dir=Path("runs/finetune"),
        views=ViewsConfig(
            patch_sizes=(16,),
            resolution=ResolutionConfig(low=160, high=288, distribution="uniform"),
            crop=0.35,
            crop_aspect=4 / 3,
            flip=0.5,
        ),
        packing=PackingConfig(seq_len=1024, sequences=32),
        optim=OptimConfig(lr=5e-4, layer_decay=0.75, warmup=500),
        train=TrainConfig(steps=10_000, label_smoothing=0.1, ema=0.999),
    )


def fast_transfer() -> Config:
    """Fast transfer: train at large, cheap patches, evaluate at small, accurate ones (FlexiViT 4.2).

    packvit train fast_transfer --model FLEXIBLE_MODEL --model.num-classes N --data.shards SHARDS
    --data.val-shards VAL

    The model must have been trained at many patch sizes.
    """
    return Config(
        run_dir=Path("runs/fast-transfer"),
        views=ViewsConfig(
            patch_sizes=(32,),
            resolution=ResolutionConfig(low=240, high=240),
            crop=0.35,
            crop_aspect=4 / 3,
            flip=0.5,
        ),
        packing=PackingConfig(seq_len=1024, sequences=32),
        optim=OptimConfig(lr=5e-4, layer_decay=0.75, warmup=500),
        train=TrainConfig(steps=10_000, label_smoothing=0.1, ema=0.999),
        eval=EvalConfig(resolutions=(240,), patch_sizes=(32, 24, 16, 12, 8)),
    )


def flexivit_transfer() -> Config:
    """FlexiViT's transfers: SGD without weight decay (FlexiViT 4; big_vision's transfer.py).

    packvit train flexivit_transfer --model FLEXIBLE_MODEL --model.num-classes N --data.shards SHARDS
    --data.val-shards VAL

    512 images a step on 8 GPUs. big_vision uses 500 steps and a warm-up of 100 for Pets and Flowers, 10,000
    and 500 for CIFAR, 20,000 and 500 for ImageNet.
    """
    return Config(
        run_dir=Path("runs/flexivit-transfer"),
        views=ViewsConfig(
            patch_sizes=(16,),
            resolution=ResolutionConfig(low=240, high=240),
            crop=0.05,
            crop_aspect=4 / 3,
            flip=0.5,
            square=True,
        ),
        packing=PackingConfig(seq_len=900, sequences=16),
        optim=OptimConfig(
            kind="sgd", lr=0.01, momentum=0.9, weight_decay=0.0, head_weight_decay=0.0, warmup=500
        ),
        train=TrainConfig(steps=10_000),
        eval=EvalConfig(resolutions=(240,), patch_sizes=(48, 30, 24, 16, 12, 8)),
    )


def linear_probe() -> Config:
    """A linear classifier on frozen features, to measure what a model has already learned.

    packvit train linear_probe --model MODEL --model.num-classes N --data.shards SHARDS --data.val-shards VAL
    """
    return Config(
        run_dir=Path("runs/linear-probe"),
        views=ViewsConfig(
            patch_sizes=(16,),
            resolution=ResolutionConfig(low=160, high=288, distribution="uniform"),
            crop=0.35,
            crop_aspect=4 / 3,
            flip=0.5,
        ),
        packing=PackingConfig(seq_len=1024, sequences=32),
        optim=OptimConfig(lr=1e-3, weight_decay=0.0, head_weight_decay=0.0, freeze=("body",), warmup=0),
        train=TrainConfig(steps=5000),
    )
