"""Recipes: each function is a whole run, to start from and to change by flags.

packvit train digits --run-dir runs/digits --data.shards DATA/train --data.val-shards DATA/val
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from packvit.data import AugmentConfig, DataConfig, MixConfig
from packvit.models import ViTConfig, load_model
from packvit.models.presets import preset
from packvit.packing import CurriculumConfig, DropConfig, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, EvalConfig, OptimConfig, TrainConfig, load_config
from packvit.train.distill import DistillConfig


def digits() -> Config:
    """The demo: digits in clutter, any size and shape, patch sizes 4 to 16, on two CPU cores in minutes.

    `packvit shards demo runs/digits-data`, then
    `packvit train digits --data.shards runs/digits-data/train --data.val-shards runs/digits-data/val`.
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

    `packvit train digits_distill --distill.teachers runs/digits --data.shards runs/digits-data/train
    --data.val-shards runs/digits-data/val`, and `--distill.init` to start with the teacher's weights.
    """
    demo = digits()
    return replace(
        demo,
        run_dir=Path("runs/digits-distill"),
        train=replace(demo.train, steps=850),
        # Where the demo's model is at its best for few tokens.
        distill=DistillConfig(teachers=("runs/digits",), patch_sizes=(8,), resolutions=(48,)),
    )


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


# ---- Transfer -----------------------------------------------------------------------------------------


def finetune() -> Config:
    """Any model on one's own shards, all of it trained; one patch size, or several by --views.patch-sizes.

    `packvit train finetune --model MODEL --model.num-classes N --data.shards SHARDS --data.val-shards VAL`.
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
    """Fast transfer: train at large, cheap patches, evaluate at small, accurate ones (FlexiViT 4.4).

    `packvit train fast_transfer --model FLEXIBLE_MODEL --model.num-classes N --data.shards SHARDS
    --data.val-shards VAL`. The model must have learned many patch sizes.
    """
    base = finetune()
    return replace(
        base,
        run_dir=Path("runs/fast-transfer"),
        views=replace(base.views, patch_sizes=(32,), resolution=ResolutionConfig(low=240, high=240)),
        eval=EvalConfig(resolutions=(240,), patch_sizes=(32, 24, 16, 12, 8)),
    )


def linear_probe() -> Config:
    """A linear classifier on frozen features: what a model knows already.

    `packvit train linear_probe --model MODEL --model.num-classes N --data.shards SHARDS
    --data.val-shards VAL`.
    """
    base = finetune()
    return replace(
        base,
        run_dir=Path("runs/linear-probe"),
        optim=OptimConfig(lr=1e-3, weight_decay=0.0, head_weight_decay=0.0, freeze=("body",), warmup=0),
        train=TrainConfig(steps=5000),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        digits_distill,
        flexivit_s_i1k_distill,
        flexivit_b_i1k_distill,
        flexivit_b_i21k,
        navit_b16,
        navit_l16,
        naflex,
        finetune,
        fast_transfer,
        linear_probe,
    )
}


def start_with(config: Config, path: str) -> Config:
    """The run with the architecture of a model, and its weights to start with.

    Raises:
        FileNotFoundError, ValueError: no model can be read from `path`.
    """
    own = config.model
    model = replace(
        load_model(Path(path)).config, drop_path=own.drop_path, checkpoint_every=own.checkpoint_every
    )
    return replace(config, model=model, train=replace(config.train, init=path))


def find_recipe(name: str) -> Config:
    """A recipe by its name, or the configuration saved in a .yaml file.

    Raises:
        ValueError: neither a recipe nor a readable file.
    """
    if name in RECIPES:
        return RECIPES[name]()
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        return load_config(path)
    raise ValueError(f"{name!r} is neither a recipe ({', '.join(RECIPES)}) nor a .yaml file")
