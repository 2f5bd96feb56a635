"""Recipes of the papers, for 8 GPUs: --packing.sequences and --train.accumulate fit them to others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from packvit.data import AugmentConfig, DataConfig, MixConfig
from packvit.models.presets import preset
from packvit.packing import CurriculumConfig, DropConfig, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, EvalConfig, OptimConfig, TrainConfig
from packvit.train.distill import DistillConfig

# ---- FlexiViT (arXiv 2212.08013) ----------------------------------------------------------------------
# At 240 pixels these are grids of 5 to 30 patches a side.
FLEXIVIT_PATCHES = (48, 40, 30, 24, 20, 16, 15, 12, 10, 8)


def flexivit(size: str, **model: Any) -> Config:
    """What FlexiViT's published configurations have in common; 1024 images a step on 8 GPUs.

    Each image has its own patch size, where the paper draws one a step; a view of 240 pixels has 273 tokens
    on average. Adam with decoupled decay: their 1e-5 at lr 1e-4 and 1e-4 at 1e-3 are PyTorch's 0.1.
    """
    fields = {"patch_buffer": 32, "patch_operator": "bilinear", "pos_embed": "grid_2d", "pos_grid": (7, 7)}
    fields |= {"qk_norm": "none", "cls": True, "pool": "cls"}
    return Config(
        data=DataConfig(workers=14),
        views=ViewsConfig(
            patch_sizes=FLEXIVIT_PATCHES,
            resolution=ResolutionConfig(low=240, high=240),
            crop=0.08,
            crop_aspect=4 / 3,
            flip=0.5,
        ),
        packing=PackingConfig(seq_len=1024, sequences=34),
        model=preset(size, **fields | model),
        optim=OptimConfig(lr=1e-4, weight_decay=0.1, head_weight_decay=0.1, warmup=5000),
        train=TrainConfig(checkpoint_every=1000, log_every=50),
        eval=EvalConfig(resolutions=(240,), patch_sizes=FLEXIVIT_PATCHES),
    )


def flexivit_s_i1k_distill() -> Config:
    """FlexiViT-S distilled from DeiT III on ImageNet-1k, 90 epochs (3.5; i1k_deit3_distill.py).

    `torchrun --nproc-per-node 8 -m packvit.train flexivit_s_i1k_distill --data.shards SHARDS
    --model timm/deit3_small_patch16_384.fb_in1k`: the student starts as its teacher.
    """
    base = flexivit("S")
    return replace(
        base,
        run_dir=Path("runs/flexivit-s-i1k"),
        data=replace(base.data, mix=MixConfig(mixup=1.0)),
        distill=DistillConfig(("timm/deit3_small_patch16_384.fb_in1k",), (16,), (384,)),
        train=replace(base.train, steps=112_600),
    )


def flexivit_b_i1k_distill() -> Config:
    """FlexiViT-B distilled from DeiT III on ImageNet-1k, 90 epochs (3.5; i1k_deit3_distill.py).

    As flexivit_s_i1k_distill, with `--model timm/deit3_base_patch16_384.fb_in1k`; the paper goes up to 1200
    epochs.
    """
    small = flexivit_s_i1k_distill()
    return replace(
        small,
        run_dir=Path("runs/flexivit-b-i1k"),
        model=flexivit("B").model,
        distill=replace(small.distill, teachers=("timm/deit3_base_patch16_384.fb_in1k",)),
    )


def flexivit_b_i21k() -> Config:
    """FlexiViT-B supervised on ImageNet-21k, 90 epochs, 4096 images a step on 8 GPUs (3.6; i21k_sup.py).

    `torchrun --nproc-per-node 8 -m packvit.train flexivit_b_i21k --data.shards SHARDS`.
    """
    base = flexivit("B", num_classes=21_843)
    return replace(
        base,
        run_dir=Path("runs/flexivit-b-i21k"),
        data=replace(
            base.data,
            mix=MixConfig(mixup=0.2),
            augment=AugmentConfig(randaugment_ops=2, randaugment_magnitude=10),
        ),
        optim=replace(base.optim, lr=1e-3, warmup=10_000),
        train=replace(base.train, steps=311_000, accumulate=4, loss="sigmoid", head_bias=-10.0),
    )


# ---- NaViT (arXiv 2307.06304) and NaFlex (SigLIP 2, arXiv 2502.14786) ---------------------------------


def navit(size: str) -> Config:
    """What NaViT's models have in common (A): about 4096 images a step on 8 GPUs.

    Sides of 64 to 256 pixels from N_t(-0.5, 1) and half of the tokens dropped leave about 46 tokens an image.
    """
    return Config(
        data=DataConfig(workers=14),
        views=ViewsConfig(
            patch_sizes=(16,),
            resolution=ResolutionConfig(low=64, high=256),
            drop=DropConfig(kind="beta", mean=0.5, maximum=0.95),
        ),
        packing=PackingConfig(seq_len=256, sequences=92),
        model=preset(size, patch_buffer=16, biases=False, qk_norm="rms", pool="map"),
        optim=OptimConfig(
            lr=8e-4,
            weight_decay=0.03,
            head_weight_decay=3.0,
            schedule="rsqrt",
            warmup=10_000,
            timescale=10_000,
            cooldown=50_000,
        ),
        train=TrainConfig(
            steps=500_000, checkpoint_every=2000, log_every=50, loss="sigmoid", head_bias=-10.0
        ),
        eval=EvalConfig(resolutions=(64, 128, 192, 256, 384), patch_sizes=(16,)),
    )


def navit_b16() -> Config:
    """NaViT-B/16: any resolution and aspect ratio, factorized positions, half of the tokens dropped.

    `torchrun --nproc-per-node 8 -m packvit.train navit_b16 --data.shards SHARDS --model.num-classes N`. The
    paper trains on JFT-4B; the number of steps is for a set like ImageNet-21k.
    """
    return replace(navit("B"), run_dir=Path("runs/navit-b16"))


def navit_l16() -> Config:
    """NaViT-L/16: as navit_b16, in shards (FSDP2)."""
    base = navit("L")
    return replace(base, run_dir=Path("runs/navit-l16"), train=replace(base.train, parallel="fsdp"))


def naflex() -> Config:
    """NaFlex-style finish: one resolution for 90 % of the run, then all sequence lengths (SigLIP 2, 2.4.2).

    `torchrun --nproc-per-node 8 -m packvit.train naflex --data.shards SHARDS --model.num-classes N`. At patch
    size 16 the sides are those of 128, 256, 576, 784 and 1024 tokens. To finish a model that is trained
    already, name it with --model and set --views.curriculum.start 0 --views.curriculum.end 0.
    """
    base, steps = navit("B"), 100_000
    last = steps * 9 // 10 * 4096
    return replace(
        base,
        run_dir=Path("runs/naflex"),
        views=ViewsConfig(
            patch_sizes=(16,),
            resolution=ResolutionConfig(sides=(181, 256, 384, 448, 512), weights=(0, 1, 0, 0, 0)),
            flip=0.5,
            curriculum=CurriculumConfig(last, last, resolution_weights=(1, 1, 1, 1, 1)),
        ),
        packing=PackingConfig(seq_len=1024, sequences=128),
        optim=replace(base.optim, schedule="cosine", cooldown=0),
        train=replace(base.train, steps=steps),
        eval=EvalConfig(resolutions=(181, 256, 384, 448, 512), patch_sizes=(16,)),
    )
