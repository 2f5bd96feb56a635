"""Recipes for images and captions: NaViT's (arXiv 2307.06304, 2.3), SigLIP's (arXiv 2303.15343, 2502.14786)
and LiT's (arXiv 2111.07991), for 8 GPUs; --packing.sequences and --train.accumulate adapt them to others.
Pairs are compared across accumulated batches as they are across GPUs. `scenes` and `emoji` are demos.

Samples need a caption, in `txt` or another field named by --contrastive.captions.
"""

from pathlib import Path

from packvit.data import AugmentConfig, DataConfig
from packvit.evaluate import EvalConfig
from packvit.models import TextConfig, ViTConfig
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.step.optim import OptimConfig
from packvit.train.tasks.config import ContrastiveConfig

# At 240 pixels these are grids of 5 to 30 patches a side (FlexiViT 3.4).
PATCHES = (48, 40, 30, 24, 20, 16, 15, 12, 10, 8)


def scenes() -> Config:
    """The demo of captions: colour, digit, size and side, at any patch size, on two CPU cores in minutes.

    packvit shards demo runs/scenes-data --kind scenes
    packvit train scenes --data.shards runs/scenes-data/train

    docs/contrastive.md reports its retrieval.
    """
    return Config(
        run_dir=Path("runs/scenes"),
        threads=1,
        data=DataConfig(workers=1, streams=8),
        views=ViewsConfig(
            patch_sizes=(8, 12, 16), resolution=ResolutionConfig(low=32, high=48, distribution="uniform")
        ),
        packing=PackingConfig(seq_len=256, sequences=10, balance=1),
        model=ViTConfig(width=64, depth=4, heads=2, qk_norm="layer", patch_buffer=16, num_classes=0),
        text=TextConfig(width=64, depth=2, heads=2, qk_norm="layer", vocab_size=100, max_tokens=24),
        contrastive=ContrastiveConfig(loss="softmax"),
        optim=OptimConfig(kind="muon", lr=3e-3, muon_lr=1e-2, warmup=100, weight_decay=1e-2),
        train=TrainConfig(steps=2400, checkpoint_every=800, log_every=25, precision="bf16"),
        eval=EvalConfig(resolutions=(32, 40, 48), patch_sizes=(8, 12, 16), sequences=16),
    )


def emoji() -> Config:
    """Emoji and their names: three designers' pictures for training, on two CPU cores in minutes.

    packvit shards demo runs/emoji-data --kind emoji
    packvit train emoji --data.shards runs/emoji-data/train

    Crops, jitter and RandAugment make up for the small number of designers. Nothing is mirrored, because many
    names contain left or right. docs/contrastive.md reports the retrieval of the fourth designer's pictures.
    """
    return Config(
        run_dir=Path("runs/emoji"),
        threads=1,
        data=DataConfig(
            workers=1,
            streams=8,
            augment=AugmentConfig(
                brightness=0.2, contrast=0.2, saturation=0.2, randaugment_ops=1, randaugment_magnitude=5
            ),
        ),
        views=ViewsConfig(
            patch_sizes=(8, 12, 16),
            resolution=ResolutionConfig(low=32, high=64, distribution="uniform"),
            crop=0.7,
            crop_aspect=1.2,
        ),
        packing=PackingConfig(seq_len=256, sequences=14, balance=1),
        model=ViTConfig(width=96, depth=4, heads=3, qk_norm="layer", patch_buffer=16, num_classes=0),
        text=TextConfig(width=96, depth=2, heads=3, qk_norm="layer", vocab_size=600, max_tokens=24),
        contrastive=ContrastiveConfig(loss="softmax"),
        optim=OptimConfig(kind="muon", lr=3e-3, muon_lr=1e-2, warmup=100, weight_decay=1e-2),
        train=TrainConfig(steps=1500, checkpoint_every=500, log_every=25, precision="bf16"),
        eval=EvalConfig(resolutions=(32, 48, 64), patch_sizes=(8, 12, 16), sequences=14),
    )


def navit_clip_l14() -> Config:
    """NaViT-L/14 on captions: any resolution, at most 24 text tokens, no augmentation (NaViT 3, A).

    torchrun --nproc-per-node 8 -m packvit.train navit_clip_l14 --data.shards SHARDS

    Sides come from U(64, 256) pixels, the learning rate is 3e-3 and the decay 1e-6. The paper's pairs are not
    public; the number of steps suits a set of hundreds of millions.
    """
    return Config(
        run_dir=Path("runs/navit-clip-l14"),
        data=DataConfig(workers=14),
        views=ViewsConfig(
            patch_sizes=(14,), resolution=ResolutionConfig(low=64, high=256, distribution="uniform")
        ),
        packing=PackingConfig(seq_len=512, sequences=64),
        model=ViTConfig(
            width=1024,
            depth=24,
            heads=16,
            biases=False,
            qk_norm="rms",
            pool="map",
            patch_buffer=14,
            num_classes=768,
        ),
        text=TextConfig(width=768, depth=12, heads=12, biases=False, max_tokens=24),
        contrastive=ContrastiveConfig(loss="softmax"),
        optim=OptimConfig(
            lr=3e-3,
            weight_decay=1e-6,
            head_weight_decay=1e-6,
            schedule="rsqrt",
            warmup=10_000,
            timescale=10_000,
            cooldown=50_000,
        ),
        train=TrainConfig(steps=500_000, accumulate=4, checkpoint_every=2000, log_every=50, parallel="fsdp"),
        eval=EvalConfig(resolutions=(64, 128, 192, 256), patch_sizes=(14,)),
    )


def siglip_naflex_b16() -> Config:
    """SigLIP-B/16 at native aspect ratios and 128 to 1024 tokens an image (SigLIP 2, 2.4.2).

    torchrun --nproc-per-node 8 -m packvit.train siglip_naflex_b16 --data.shards SHARDS

    It uses the sigmoid loss with t' = ln 10 and b = -10, a learning rate of 1e-3, beta2 of 0.95 and a
    decoupled decay of 1e-4, which is PyTorch's 0.1 (SigLIP, 4). Texts are packed, not padded to 64 tokens.
    """
    return Config(
        run_dir=Path("runs/siglip-naflex-b16"),
        data=DataConfig(workers=14),
        views=ViewsConfig(patch_sizes=(16,), resolution=ResolutionConfig(sides=(181, 256, 384, 448, 512))),
        packing=PackingConfig(seq_len=1024, sequences=64),
        model=ViTConfig(
            width=768,
            depth=12,
            heads=12,
            qk_norm="none",
            pool="map",
            patch_buffer=16,
            num_classes=0,
            pos_embed="grid_2d",
            pos_grid=(16, 16),
        ),
        text=TextConfig(width=768, depth=12, heads=12, qk_norm="none", max_tokens=64),
        contrastive=ContrastiveConfig(loss="sigmoid"),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, head_weight_decay=0.1, warmup=20_000),
        train=TrainConfig(steps=500_000, accumulate=8, checkpoint_every=2000, log_every=50),
        eval=EvalConfig(resolutions=(181, 256, 384, 512), patch_sizes=(16,)),
    )


def lit() -> Config:
    """LiT: a text tower learns to match a frozen model (siglip_lit_coco.py).

    packvit train lit --model MODEL --data.shards SHARDS

    The model's head is not used. t = 10, b = -2.71, 5,000 steps of about 512 pairs, a learning rate of 1e-3
    and a decoupled decay of 0.01, which is PyTorch's 10.
    """
    return Config(
        run_dir=Path("runs/lit"),
        data=DataConfig(augment=AugmentConfig(randaugment_ops=2, randaugment_magnitude=10)),
        views=ViewsConfig(patch_sizes=(16,), resolution=ResolutionConfig(low=224, high=224), flip=0.5),
        packing=PackingConfig(seq_len=1024, sequences=100),
        model=ViTConfig(num_classes=0),
        text=TextConfig(width=768, depth=12, heads=12, qk_norm="none", max_tokens=16),
        contrastive=ContrastiveConfig(loss="sigmoid", temperature=10.0, bias=-2.71),
        optim=OptimConfig(lr=1e-3, weight_decay=10.0, warmup=150, freeze=("body",)),
        train=TrainConfig(steps=5000),
        eval=EvalConfig(resolutions=(224,), patch_sizes=(16,)),
    )


def flexi_lit() -> Config:
    """FlexiLiT: like lit, but for a flexible model; the patch size is drawn for each image (FlexiViT 4.2).

    packvit train flexi_lit --model FLEXIBLE_MODEL --data.shards SHARDS

    One text tower serves all patch sizes.
    """
    return Config(
        run_dir=Path("runs/flexi-lit"),
        data=DataConfig(augment=AugmentConfig(randaugment_ops=2, randaugment_magnitude=10)),
        views=ViewsConfig(patch_sizes=PATCHES, resolution=ResolutionConfig(low=240, high=240), flip=0.5),
        packing=PackingConfig(seq_len=1024, sequences=136),
        model=ViTConfig(num_classes=0),
        text=TextConfig(width=768, depth=12, heads=12, qk_norm="none", max_tokens=16),
        contrastive=ContrastiveConfig(loss="sigmoid", temperature=10.0, bias=-2.71),
        optim=OptimConfig(lr=1e-3, weight_decay=10.0, warmup=150, freeze=("body",)),
        train=TrainConfig(steps=5000),
        eval=EvalConfig(resolutions=(240,), patch_sizes=PATCHES),
    )


def flexi_clip() -> Config:
    """FlexiCLIP: both towers learn, and the patch size is drawn for each image.

    torchrun --nproc-per-node 8 -m packvit.train flexi_clip --data.shards SHARDS
    """
    return Config(
        run_dir=Path("runs/flexi-clip"),
        data=DataConfig(workers=14),
        views=ViewsConfig(patch_sizes=PATCHES, resolution=ResolutionConfig(low=240, high=240)),
        packing=PackingConfig(seq_len=1024, sequences=34),
        model=ViTConfig(
            width=768,
            depth=12,
            heads=12,
            qk_norm="none",
            pool="map",
            patch_buffer=32,
            num_classes=0,
            pos_embed="grid_2d",
            pos_grid=(7, 7),
        ),
        text=TextConfig(width=768, depth=12, heads=12, qk_norm="none", max_tokens=64),
        contrastive=ContrastiveConfig(loss="sigmoid"),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, head_weight_decay=0.1, warmup=10_000),
        train=TrainConfig(steps=200_000, accumulate=4, checkpoint_every=2000, log_every=50),
        eval=EvalConfig(resolutions=(240,), patch_sizes=PATCHES),
    )
