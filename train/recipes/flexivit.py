"""FlexiViT's recipes (arXiv 2212.08013), for 8 GPUs; --packing.sequences and --train.accumulate fit them to
others.

In all of them each image has its own patch size, where the paper draws one a step, and a view of 240 pixels
has 273 tokens on average: 1024 images a step on 8 GPUs. Adam has decoupled decay: the paper's 1e-5 at lr 1e-4
and 1e-4 at 1e-3 are PyTorch's 0.1.
"""

from pathlib import Path

from packvit.data import AugmentConfig, DataConfig, MixConfig
from packvit.evaluate import EvalConfig
from packvit.models import ViTConfig
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.step.optim import OptimConfig
from packvit.train.tasks.config import DistillConfig

# At 240 pixels these are grids of 5 to 30 patches a side.
PATCHES = (48, 40, 30, 24, 20, 16, 15, 12, 10, 8)


def flexivit_s_i1k_distill() -> Config:
    """FlexiViT-S distilled from DeiT III on ImageNet-1k, 90 epochs (3.5; i1k_deit3_distill.py).

    torchrun --nproc-per-node 8 -m packvit.train flexivit_s_i1k_distill --data.shards SHARDS
    --model timm/deit3_small_patch16_384.fb_in1k

    The student starts as its teacher.
    """
    return Config(
        run_dir=Path("runs/flexivit-s-i1k"),
        data=DataConfig(workers=14, mix=MixConfig(mixup=1.0)),
        views=ViewsConfig(
            patch_sizes=PATCHES,
            resolution=ResolutionConfig(low=240, high=240),
            crop=0.08,
            crop_aspect=4 / 3,
            flip=0.5,
        ),
        packing=PackingConfig(seq_len=1024, sequences=34),
        model=ViTConfig(
            width=384,
            depth=12,
            heads=6,
            qk_norm="none",
            cls=True,
            pool="cls",
            patch_buffer=32,
            patch_operator="bilinear",
            pos_embed="grid_2d",
            pos_grid=(7, 7),
        ),
        optim=OptimConfig(lr=1e-4, weight_decay=0.1, head_weight_decay=0.1, warmup=5000),
        train=TrainConfig(steps=112_600, checkpoint_every=1000, log_every=50),
        distill=DistillConfig(
            teachers=("timm/deit3_small_patch16_384.fb_in1k",), patch_sizes=(16,), resolutions=(384,)
        ),
        eval=EvalConfig(resolutions=(240,), patch_sizes=PATCHES),
    )


def flexivit_b_i1k_distill() -> Config:
    """FlexiViT-B distilled from DeiT III on ImageNet-1k, 90 epochs (3.5; i1k_deit3_distill.py).

    torchrun --nproc-per-node 8 -m packvit.train flexivit_b_i1k_distill --data.shards SHARDS
    --model timm/deit3_base_patch16_384.fb_in1k

    The student starts as its teacher. The paper goes up to 1200 epochs.
    """
    return Config(
        run_dir=Path("runs/flexivit-b-i1k"),
        data=DataConfig(workers=14, mix=MixConfig(mixup=1.0)),
        views=ViewsConfig(
            patch_sizes=PATCHES,
            resolution=ResolutionConfig(low=240, high=240),
            crop=0.08,
            crop_aspect=4 / 3,
            flip=0.5,
        ),
        packing=PackingConfig(seq_len=1024, sequences=34),
        model=ViTConfig(
            width=768,
            depth=12,
            heads=12,
            qk_norm="none",
            cls=True,
            pool="cls",
            patch_buffer=32,
            patch_operator="bilinear",
            pos_embed="grid_2d",
            pos_grid=(7, 7),
        ),
        optim=OptimConfig(lr=1e-4, weight_decay=0.1, head_weight_decay=0.1, warmup=5000),
        train=TrainConfig(steps=112_600, checkpoint_every=1000, log_every=50),
        distill=DistillConfig(
            teachers=("timm/deit3_base_patch16_384.fb_in1k",), patch_sizes=(16,), resolutions=(384,)
        ),
        eval=EvalConfig(resolutions=(240,), patch_sizes=PATCHES),
    )


def flexivit_b_i21k() -> Config:
    """FlexiViT-B supervised on ImageNet-21k, 90 epochs, 4096 images a step on 8 GPUs (3.6; i21k_sup.py).

    torchrun --nproc-per-node 8 -m packvit.train flexivit_b_i21k --data.shards SHARDS
    """
    return Config(
        run_dir=Path("runs/flexivit-b-i21k"),
        data=DataConfig(
            workers=14,
            mix=MixConfig(mixup=0.2),
            augment=AugmentConfig(randaugment_ops=2, randaugment_magnitude=10),
        ),
        views=ViewsConfig(
            patch_sizes=PATCHES,
            resolution=ResolutionConfig(low=240, high=240),
            crop=0.08,
            crop_aspect=4 / 3,
            flip=0.5,
        ),
        packing=PackingConfig(seq_len=1024, sequences=34),
        model=ViTConfig(
            width=768,
            depth=12,
            heads=12,
            num_classes=21_843,
            qk_norm="none",
            cls=True,
            pool="cls",
            patch_buffer=32,
            patch_operator="bilinear",
            pos_embed="grid_2d",
            pos_grid=(7, 7),
        ),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, head_weight_decay=0.1, warmup=10_000),
        train=TrainConfig(
            steps=311_000,
            accumulate=4,
            checkpoint_every=1000,
            log_every=50,
            loss="sigmoid",
            head_bias=-10.0,
        ),
        eval=EvalConfig(resolutions=(240,), patch_sizes=PATCHES),
    )
