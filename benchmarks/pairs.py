"""Compare a contrastive training step on images of many sizes with open_clip's on a CPU.

`OMP_NUM_THREADS=2 python benchmarks/pairs.py` (some ten minutes on two quiet cores) writes
benchmarks/results/pairs.json and a table of docs/contrastive.md. It needs `pip install -c constraints.txt
'packvit[peers]'`, as benchmarks/model.py does.

Both train a ViT-Ti, patches of 16, on the same images, already decoded, with a text tower of width 192 and
depth 6 on the same captions of 6 to 24 tokens, in bf16 autocast: forward, softmax loss over all pairs,
backward, AdamW. open_clip's image tower is timm's NaFlexViT in its adapter, with its class CustomTextCLIP
and its ClipLoss. A tower may see its images in parts, whose embeddings are joined before the loss; parts of
open_clip's may be sorted by length, as its trainer groups them since version 4. Each runs at the best of its
settings; noise only ever adds time, so a speed is the best of interleaved rounds.
"""

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from contestants import DEPTH, HEADS, LIKE_PEERS, TIMM, WIDTH, P, draw_images, tokens_of
from contestants import pack as pack_batches
from contestants import pad as pad_batch
from model import SPEED, Trainer, best_seconds
from torch import Tensor

from gpu.results import replace_section
from packvit.common.device import device_name
from packvit.models import PackedText, TextConfig, TwoTowers, TwoTowersConfig, ViTConfig
from packvit.train import contrastive_loss

ROOT = Path(__file__).parent.parent
VOCAB, CONTEXT, TEXT_DEPTH, TEMPERATURE = 4000, 24, 6, 1 / 0.07
PADDED, SORTED = "open_clip, arrival order", "open_clip, parts sorted by length"
Pairs = tuple[list[np.ndarray], list[list[int]]]
Made = tuple[torch.nn.Module, list[Callable[[], Tensor]]]


def draw_pairs(count: int) -> Pairs:
    """Images as benchmarks/model.py draws them, and tokens of their captions, the last one the largest id."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(6, CONTEXT + 1, count)
    return draw_images(count), [[*rng.integers(1, VOCAB - 1, n - 1).tolist(), VOCAB - 1] for n in lengths]


def packvit_step(pairs: Pairs, seq_len: int, rows: int) -> Made:
    """Packed images, `rows` sequences at a time, and packed texts."""
    images, texts = pairs
    towers = {"width": WIDTH, "heads": HEADS, **LIKE_PEERS}
    config = TwoTowersConfig(
        image=ViTConfig(**towers, depth=DEPTH, patch_buffer=P, num_classes=WIDTH),
        text=TextConfig(
            width=WIDTH,
            heads=HEADS,
            qk_norm="none",
            mlp="gelu",
            pool="last",
            depth=TEXT_DEPTH,
            vocab_size=VOCAB,
            max_tokens=CONTEXT,
            embed_dim=WIDTH,
        ),
        temperature=TEMPERATURE,
        bias=None,
    )
    model = TwoTowers(config)
    order, batches = pack_batches(images, seq_len, rows)
    text = PackedText.build([texts[i] for i in order])

    def step() -> Tensor:
        embedded = torch.cat([model.embed_images(batch) for batch in batches])
        scale, _ = model.logits()
        return contrastive_loss(embedded, model.embed_texts(text), scale)

    return model, [step]


def open_clip_step(pairs: Pairs, batch: int, key_mask: bool, by_length: bool) -> Made:
    """Images in parts of `batch`, padded to the longest of each, and texts padded to the context.

    `key_mask` is timm's option of a mask over keys alone instead of one over pairs.
    """
    from open_clip.loss import ClipLoss  # pyright: ignore
    from open_clip.model import CustomTextCLIP  # pyright: ignore
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg  # pyright: ignore

    images, texts = pairs
    order = (
        sorted(range(len(images)), key=lambda i: tokens_of(images[i])) if by_length else range(len(images))
    )
    vision = {"timm_model_name": "naflexvit_base_patch16_gap", "timm_pool": "", "timm_proj": "linear"}
    text = {
        "context_length": CONTEXT,
        "vocab_size": VOCAB,
        "width": WIDTH,
        "heads": HEADS,
        "layers": TEXT_DEPTH,
    }
    model = CustomTextCLIP(WIDTH, {**vision, "image_size": 256}, text)
    trunk = NaFlexVitCfg(**TIMM, pos_embed="factorized", use_key_only_attn_mask=key_mask)
    model.visual.trunk = NaFlexVit(trunk, num_classes=0)
    model.visual.head.proj = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    inputs = [pad_batch([images[i] for i in part]) for part in parts]
    ids = torch.zeros(len(images), CONTEXT, dtype=torch.long)
    for row, i in enumerate(order):
        ids[row, : len(texts[i])] = torch.tensor(texts[i])
    loss = ClipLoss()

    def step() -> Tensor:
        image = torch.cat([model.encode_image(part, normalize=True) for part in inputs])
        return loss(image, model.encode_text(ids, normalize=True), model.logit_scale.exp())

    return model, [step]


PARTS = [{"batch": n, "key_mask": key_mask} for n in (8, 16, 32, 128) for key_mask in (False, True)]
SWEPT: dict[str, tuple[Callable[..., Made], list[dict]]] = {
    "packvit": (packvit_step, [{"seq_len": 1024, "rows": n} for n in (2, 4, 8, 16)]),
    PADDED: (partial(open_clip_step, by_length=False), PARTS),
    SORTED: (partial(open_clip_step, by_length=True), PARTS),
}


def compare(pairs: Pairs, rounds: int) -> dict:
    """Pairs per second of each at the best of its settings, and how much faster packvit is."""
    count = len(pairs[0])
    sweeps, trainers = {}, {}
    for name, (make, settings) in SWEPT.items():
        made = {str(i): Trainer(make(pairs, **setting)) for i, setting in enumerate(settings)}
        best = best_seconds(made, rounds=3)
        rows = [{**s, SPEED: round(count / best[str(i)], 1)} for i, s in enumerate(settings)]
        sweeps[name] = sorted(rows, key=lambda row: -row[SPEED])
        print(name, *sweeps[name], sep="\n  ", flush=True)
        trainers[name] = Trainer(
            make(pairs, **{key: value for key, value in sweeps[name][0].items() if key != SPEED})
        )
    best = best_seconds(trainers, rounds)
    return {
        "pairs": count,
        "image_tokens": sum(map(tokens_of, pairs[0])),
        "text_tokens": sum(map(len, pairs[1])),
        "pairs_per_s": {name: round(count / seconds, 1) for name, seconds in best.items()},
        "packvit_is_faster_by": {name: round(seconds / best["packvit"], 2) for name, seconds in best.items()},
        "sweeps": sweeps,
    }


def table(results: dict) -> str:
    """The rows of docs/contrastive.md."""
    step = results["training_step"]
    lines = [
        "| training step of two towers | pairs/s | packvit is faster by | setting |",
        "| --- | ---: | ---: | --- |",
    ]
    for name, speed in step["pairs_per_s"].items():
        setting = ", ".join(
            f"{key} {value}" for key, value in step["sweeps"][name][0].items() if key != SPEED
        )
        lines.append(f"| {name} | {speed} | {step['packvit_is_faster_by'][name]:.2f}x | {setting} |")
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{step['pairs']} pairs of {step['image_tokens']} image tokens and {step['text_tokens']} text "
            f"tokens; {results['hardware']}, {versions}; `{results['command']}`.",
        ]
    )


def main() -> None:
    """Measure, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    results = {
        "command": f"python benchmarks/pairs.py --pairs {arguments.pairs} --rounds {arguments.rounds}",
        "hardware": f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "timm", "open_clip_torch")},
        "training_step": compare(draw_pairs(arguments.pairs), arguments.rounds),
    }
    (ROOT / "benchmarks/results/pairs.json").write_text(json.dumps(results, indent=1) + "\n")
    replace_section("pairs", [table(results)], ROOT / "docs/contrastive.md")


if __name__ == "__main__":
    main()
