"""FlexiViT's recipes (arXiv 2212.08013), based on the configurations that were released with it in
big_vision's configs/proj/flexivit, for 8 GPUs; --packing.sequences and --train.accumulate adapt them to
others.

Views are squares of 240 pixels, 273 tokens on average over the ten patch sizes: 34 sequences of 1024 on 8
GPUs are 1024 images a step. Adam has decoupled decay: the paper's 1e-5 at lr 1e-4 and 1e-4 at 1e-3 are
PyTorch's 0.1. All of them differ from the source as follows (docs/papers.md has the table):

- every image has its own patch size; the paper draws one a step, as does --views.patch-size-per batch;
- images are resized with an antialiased bicubic filter, not a bilinear one without antialias;
- the initial standard deviation of a new patch embedding is 1 / sqrt(inputs) = 0.018, not 1 / sqrt(D).
"""

from dataclasses import replace
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
    """FlexiViT-S distilled from DeiT III on ImageNet-1k, 90 epochs (FlexiViT 3.5; i1k_deit3_distill.py).

    torchrun --nproc-per-node 8 -m packvit.train flexivit_s_i1k_distill --data.shards SHARDS
    --model timm/deit3_small_patch16_384.fb_in1k

    The student starts with its teacher's weights, PI-resized from 16 to 32 pixels and from 24x24 to 7x7
    positions. The released configuration keeps its buffer at 16 pixels; the paper's is 32 (3.4).
    """
    return Config(
        run_dir=Path("runs/flexivit-s-i1k"),
        data=DataConfig(workers=14, mix=MixConfig(mixup=1.0, per="batch")),
        views=ViewsConfig(
            patch_sizes=PATCHES,
            resolution=ResolutionConfig(low=240, high=240),
            crop=0.05,
            crop_aspect=4 / 3,
            flip=0.5,
            square=True,
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
        train=TrainConfig(steps=111_477, checkpoint_every=1000, log_every=50),
        distill=DistillConfig(
            teachers=("timm/deit3_small_patch16_384.fb_in1k",), patch_sizes=(16,), resolutions=(384,)
        ),
        eval=EvalConfig(resolutions=(240,), patch_sizes=PATCHES),
    )


def flexivit_b_i1k_distill() -> Config:
    """FlexiViT-B distilled from DeiT III on ImageNet-1k, 90 epochs (FlexiViT 3.5; i1k_deit3_distill.py).

    torchrun --nproc-per-node 8 -m packvit.train flexivit_b_i1k_distill --data.shards SHARDS
    --model timm/deit3_base_patch16_384.fb_in1k

    Otherwise like flexivit_s_i1k_distill. The paper trains for up to 1200 epochs.
    """
    small = flexivit_s_i1k_distill()
    return replace(
        small,
        run_dir=Path("runs/flexivit-b-i1k"),
        model=replace(small.model, width=768, heads=12),
        distill=replace(small.distill, teachers=("timm/deit3_base_patch16_384.fb_in1k",)),
    )


def flexivit_b_i21k() -> Config:
    """FlexiViT-B supervised on ImageNet-21k, 90 epochs (FlexiViT 3.3; i21k_sup.py).

    torchrun --nproc-per-node 8 -m packvit.train flexivit_b_i21k --data.shards SHARDS

    It uses the paper's buffer of 32 pixels (3.4) instead of the released configuration's 8.
    """
    return Config(
        run_dir=Path("runs/flexivit-b-i21k"),
        data=DataConfig(
            workers=14,
            mix=MixConfig(mixup=0.2, per="batch"),
            augment=AugmentConfig(randaugment_ops=2, randaugment_magnitude=10),
        ),
        views=ViewsConfig(
            patch_sizes=PATCHES,
            resolution=ResolutionConfig(low=240, high=240),
            crop=0.05,
            crop_aspect=4 / 3,
            flip=0.5,
            square=True,
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
            steps=310_823,
            accumulate=4,
            checkpoint_every=1000,
            log_every=50,
            loss="sigmoid",
            head_bias=-10.0,
        ),
        eval=EvalConfig(resolutions=(240,), patch_sizes=PATCHES),
    )


def flexivit_b_i21k_distill() -> Config:
    """FlexiViT-B distilled on ImageNet-21k from a ViT-B/8, 90 epochs (FlexiViT 3.5; i21k_distill.py).

    torchrun --nproc-per-node 8 -m packvit.train flexivit_b_i21k_distill --data.shards SHARDS
    --model TEACHER --distill.teachers TEACHER

    TEACHER is a ViT-B/8 of ImageNet-21k with its head, such as a big_vision .npz of "How to train your ViT"
    (arXiv 2106.10270), which sees 224 pixels. The student starts with its weights; 4096 images a step.
    """
    labels = flexivit_b_i21k()
    return replace(
        labels,
        run_dir=Path("runs/flexivit-b-i21k-distill"),
        data=DataConfig(workers=14, mix=MixConfig(mixup=1.0, per="batch")),
        optim=replace(labels.optim, lr=1e-4, warmup=5000),
        train=replace(labels.train, loss="softmax", head_bias=0.0),
        distill=DistillConfig(teachers=("TEACHER",), patch_sizes=(8,), resolutions=(224,)),
    )
