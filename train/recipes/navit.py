"""NaViT's recipes (arXiv 2307.06304, A) and a NaFlex-style one (SigLIP 2, arXiv 2502.14786), for 8 GPUs;
--packing.sequences and --train.accumulate fit them to others.

In NaViT's, sides of 64 to 256 pixels from N_t(-0.5, 1) and half of the tokens dropped leave about 46 tokens
an image: about 4096 images a step. The paper trains on JFT-4B; the number of steps is for a set like
ImageNet-21k.
"""

from pathlib import Path

from packvit.data import DataConfig
from packvit.evaluate import EvalConfig
from packvit.models import ViTConfig
from packvit.packing import CurriculumConfig, DropConfig, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.step.optim import OptimConfig


def navit_b16() -> Config:
    """NaViT-B/16: any resolution and aspect ratio, factorized positions, half of the tokens dropped.

    torchrun --nproc-per-node 8 -m packvit.train navit_b16 --data.shards SHARDS --model.num-classes N
    """
    return Config(
        run_dir=Path("runs/navit-b16"),
        data=DataConfig(workers=14),
        views=ViewsConfig(
            patch_sizes=(16,),
            resolution=ResolutionConfig(low=64, high=256),
            drop=DropConfig(kind="beta", mean=0.5, maximum=0.95),
        ),
        packing=PackingConfig(seq_len=256, sequences=92),
        model=ViTConfig(
            width=768, depth=12, heads=12, biases=False, qk_norm="rms", pool="map", patch_buffer=16
        ),
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


def navit_l16() -> Config:
    """NaViT-L/16: as navit_b16, in shards (FSDP2).

    torchrun --nproc-per-node 8 -m packvit.train navit_l16 --data.shards SHARDS --model.num-classes N
    """
    return Config(
        run_dir=Path("runs/navit-l16"),
        data=DataConfig(workers=14),
        views=ViewsConfig(
            patch_sizes=(16,),
            resolution=ResolutionConfig(low=64, high=256),
            drop=DropConfig(kind="beta", mean=0.5, maximum=0.95),
        ),
        packing=PackingConfig(seq_len=256, sequences=92),
        model=ViTConfig(
            width=1024, depth=24, heads=16, biases=False, qk_norm="rms", pool="map", patch_buffer=16
        ),
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
            steps=500_000,
            checkpoint_every=2000,
            log_every=50,
            loss="sigmoid",
            head_bias=-10.0,
            parallel="fsdp",
        ),
        eval=EvalConfig(resolutions=(64, 128, 192, 256, 384), patch_sizes=(16,)),
    )


def naflex() -> Config:
    """NaFlex-style finish: one resolution for 90 % of the run, then all sequence lengths (SigLIP 2, 2.4.2).

    torchrun --nproc-per-node 8 -m packvit.train naflex --data.shards SHARDS --model.num-classes N

    At patch size 16 the sides are those of 128, 256, 576, 784 and 1024 tokens. To finish a model that is
    trained already, name it with --model and set --views.curriculum.start 0 --views.curriculum.end 0.
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
            curriculum=CurriculumConfig(last_tenth, last_tenth, resolution_weights=(1, 1, 1, 1, 1)),
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
