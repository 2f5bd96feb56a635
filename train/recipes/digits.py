"""The demo's recipes, for two CPU cores."""

from pathlib import Path

from packvit.data import DataConfig
from packvit.evaluate import EvalConfig
from packvit.models import ViTConfig
from packvit.packing import DropConfig, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.step.optim import OptimConfig
from packvit.train.tasks.config import DistillConfig


def digits() -> Config:
    """The demo: digits in clutter, any size and shape, patch sizes 4 to 16, on two CPU cores in minutes.

    packvit shards demo runs/digits-data
    packvit train digits --data.shards runs/digits-data/train --data.val-shards runs/digits-data/val

    At 48 pixels and patch size 8 it classifies more than 90 % of the 2,000 test canvases correctly (README).
    """
    return Config(
        run_dir=Path("runs/digits"),
        threads=1,  # the model is so small that a second thread costs more than it brings
        data=DataConfig(workers=1, streams=8),
        views=ViewsConfig(
            patch_sizes=(4, 6, 8, 12, 16),
            resolution=ResolutionConfig(low=24, high=64, distribution="uniform"),
            drop=DropConfig(kind="beta", mean=0.2, maximum=0.75),
        ),
        # One rank waits for nobody, and the set is small: batches need no balance.
        packing=PackingConfig(seq_len=256, sequences=12, balance=1),
        model=ViTConfig(width=64, depth=4, heads=2, qk_norm="layer", patch_buffer=16, num_classes=10),
        optim=OptimConfig(kind="muon", lr=3e-3, muon_lr=1e-2, warmup=100),
        train=TrainConfig(steps=1700, checkpoint_every=500, log_every=25, precision="bf16", ema=0.99),
        eval=EvalConfig(resolutions=(32, 48, 64, 80), patch_sizes=(4, 6, 8, 12, 16), sequences=16),
    )


def digits_distill() -> Config:
    """The demo without labels: a second model learns from the first, in half the steps.

    packvit train digits_distill --distill.teachers runs/digits --data.shards runs/digits-data/train
    --data.val-shards runs/digits-data/val

    `--distill.init` starts with the teacher's weights. docs/distill.md has results with and without it.
    """
    return Config(
        run_dir=Path("runs/digits-distill"),
        threads=1,
        data=DataConfig(workers=1, streams=8),
        views=ViewsConfig(
            patch_sizes=(4, 6, 8, 12, 16),
            resolution=ResolutionConfig(low=24, high=64, distribution="uniform"),
            drop=DropConfig(kind="beta", mean=0.2, maximum=0.75),
        ),
        packing=PackingConfig(seq_len=256, sequences=12, balance=1),
        model=ViTConfig(width=64, depth=4, heads=2, qk_norm="layer", patch_buffer=16, num_classes=10),
        optim=OptimConfig(kind="muon", lr=3e-3, muon_lr=1e-2, warmup=100),
        train=TrainConfig(steps=850, checkpoint_every=500, log_every=25, precision="bf16", ema=0.99),
        # Where the demo's model is at its best for few tokens.
        distill=DistillConfig(teachers=("runs/digits",), patch_sizes=(8,), resolutions=(48,)),
        eval=EvalConfig(resolutions=(32, 48, 64, 80), patch_sizes=(4, 6, 8, 12, 16), sequences=16),
    )
