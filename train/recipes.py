"""Recipes: each function is a whole run, to start from and to change by flags.

packvit train digits --run-dir runs/digits --data.shards DATA/train --data.val-shards DATA/val
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from packvit.data import DataConfig
from packvit.models import ViTConfig, load_model
from packvit.packing import DropConfig, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, EvalConfig, OptimConfig, TrainConfig, load_config
from packvit.train.distill import DistillConfig
from packvit.train.papers import (
    flexivit_b_i1k_distill,
    flexivit_b_i21k,
    flexivit_s_i1k_distill,
    naflex,
    navit_b16,
    navit_l16,
)


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
