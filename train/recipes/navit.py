"""NaViT's recipes (arXiv 2307.06304) and a NaFlex-style one (SigLIP 2, arXiv 2502.14786), for 8 GPUs;
--packing.sequences and --train.accumulate adapt them to others.

With NaViT's sides of 64 to 256 pixels and half of the tokens dropped, an image of 4:3 has about 51 tokens at
patch size 16: 5 images fill a sequence of 256 slots, and 92 sequences on 8 GPUs, accumulated five times, are
the paper's 1.9e4 images a step. All of them differ from the source as follows (docs/papers.md has the table):

- the paper trains on JFT-4B with 29,593 classes; any set of labels can be used here;
- packing is `oldest_first`; the paper describes a greedy first fit (B.3; --packing.algorithm first_fit).
"""

from dataclasses import replace
from pathlib import Path

from packvit.data import DataConfig
from packvit.evaluate import EvalConfig
from packvit.models import ViTConfig
from packvit.packing import CurriculumConfig, DropConfig, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.step.optim import OptimConfig


def navit_b16() -> Config:
    """NaViT-B/16, the longest of four lengths: any resolution, half of the tokens dropped (NaViT Tab. 2).

    torchrun --nproc-per-node 8 -m packvit.train navit_b16 --data.shards SHARDS --model.num-classes N

    920,000 steps, the last 100,000 of them cooling down. Layers are ViT-22B's, without biases in queries,
    keys and values, and with norms that do not centre.
    """
    return Config(
        run_dir=Path("runs/navit-b16"),
        data=DataConfig(workers=14),
        views=ViewsConfig(
            patch_sizes=(16,),
            resolution=ResolutionConfig(low=64, high=256, distribution="uniform"),
            drop=DropConfig(kind="beta", mean=0.5, maximum=0.95),
            rounding="floor",
        ),
        packing=PackingConfig(seq_len=256, sequences=92),
        model=ViTConfig(
            width=768,
            depth=12,
            heads=12,
            qkv_biases=False,
            norm="rms",
            qk_norm="rms",
            pool="map",
            patch_buffer=16,
        ),
        optim=OptimConfig(
            lr=8e-4,
            weight_decay=0.03,
            head_weight_decay=3.0,
            schedule="rsqrt",
            warmup=10_000,
            timescale=10_000,
            cooldown=100_000,
        ),
        train=TrainConfig(
            steps=920_000,
            accumulate=5,
            checkpoint_every=2000,
            log_every=50,
            loss="sigmoid",
            head_bias=-10.0,
        ),
        eval=EvalConfig(resolutions=(64, 128, 192, 256, 384), patch_sizes=(16,)),
    )


def navit_b16_460k() -> Config:
    """NaViT-B/16 in 460,000 steps, the last 100,000 of them cooling down (NaViT Tab. 2).

    torchrun --nproc-per-node 8 -m packvit.train navit_b16_460k --data.shards SHARDS --model.num-classes N
    """
    return shorter("navit-b16-460k", 460_000, 100_000)


def navit_b16_230k() -> Config:
    """NaViT-B/16 in 230,000 steps, the last 50,000 of them cooling down (NaViT Tab. 2).

    torchrun --nproc-per-node 8 -m packvit.train navit_b16_230k --data.shards SHARDS --model.num-classes N
    """
    return shorter("navit-b16-230k", 230_000, 50_000)


def navit_b16_93k() -> Config:
    """NaViT-B/16 in 93,000 steps, the last 10,000 of them cooling down (NaViT Tab. 2).

    torchrun --nproc-per-node 8 -m packvit.train navit_b16_93k --data.shards SHARDS --model.num-classes N
    """
    return shorter("navit-b16-93k", 93_000, 10_000)


def shorter(name: str, steps: int, cooldown: int) -> Config:
    """navit_b16 in fewer steps."""
    full = navit_b16()
    return replace(
        full,
        run_dir=Path("runs") / name,
        optim=replace(full.optim, cooldown=cooldown),
        train=replace(full.train, steps=steps),
    )


def navit_b32() -> Config:
    """NaViT-B/32: like navit_b16 with a quarter of the tokens, 2.2e4 images a step (NaViT A).

    torchrun --nproc-per-node 8 -m packvit.train navit_b32 --data.shards SHARDS --model.num-classes N
    """
    full = navit_b16()
    return replace(
        full,
        run_dir=Path("runs/navit-b32"),
        views=replace(full.views, patch_sizes=(32,)),
        packing=replace(full.packing, sequences=128),
        model=replace(full.model, patch_buffer=32),
        train=replace(full.train, accumulate=1),
        eval=EvalConfig(resolutions=(64, 128, 192, 256, 384), patch_sizes=(32,)),
    )


def navit_l16() -> Config:
    """NaViT-L/16: like navit_b16 in half as many steps, with sharded parameters, FSDP2 (NaViT A).

    torchrun --nproc-per-node 8 -m packvit.train navit_l16 --data.shards SHARDS --model.num-classes N
    """
    full = navit_b16()
    return replace(
        full,
        run_dir=Path("runs/navit-l16"),
        model=replace(full.model, width=1024, depth=24, heads=16),
        optim=replace(full.optim, cooldown=50_000),
        train=replace(full.train, steps=500_000, parallel="fsdp"),
    )


def naflex() -> Config:
    """NaFlex-style finish: squares of 256 pixels for 90 % of the run, then all lengths (SigLIP 2, 2.4.2).

    torchrun --nproc-per-node 8 -m packvit.train naflex --data.shards SHARDS --model.num-classes N

    At patch size 16, the sides give 128, 256, 576, 784 and 1024 tokens. To finish a model that is already
    trained, name it with --model and set --views.curriculum.start 0 --views.curriculum.end 0. Unlike SigLIP
    2, it learns classes, draws a length for each image rather than each batch, and neither stretches the
    learning rate's last tenth by 3.75 nor halves the batch at 1024 tokens, because packs of mixed lengths
    always cost the same.
    """
    steps = 100_000
    last_tenth = steps * 9 // 10 * 4096  # images
    return Config(
        run_dir=Path("runs/naflex"),
        data=DataConfig(workers=14),
        views=ViewsConfig(
            patch_sizes=(16,),
            resolution=ResolutionConfig(sides=(181, 256, 384, 448, 512), weights=(0, 1, 0, 0, 0)),
            flip=0.5,
            square=True,
            rounding="ceil",
            curriculum=CurriculumConfig(
                last_tenth, last_tenth, resolution_weights=(1, 1, 1, 1, 1), native=True
            ),
        ),
        packing=PackingConfig(seq_len=1024, sequences=128),
        model=ViTConfig(
            width=768, depth=12, heads=12, biases=False, qk_norm="rms", pool="map", patch_buffer=16
        ),
        optim=OptimConfig(
            lr=8e-4,
            weight_decay=0.03,
            head_weight_decay=3.0,
            schedule="cosine",
            warmup=10_000,
        ),
        train=TrainConfig(steps=steps, checkpoint_every=2000, log_every=50, loss="sigmoid", head_bias=-10.0),
        eval=EvalConfig(resolutions=(181, 256, 384, 448, 512), patch_sizes=(16,)),
    )
