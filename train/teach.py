"""`packvit teach`: a teacher's logits, computed once and written into the shards beside the images.

The teacher sees whole images at one budget, so training with these logits fits best without crops and flips:
what a crop shows may not be what the teacher has seen.
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from packvit.data import EvalSet, Shard, expand_shards, write_taught
from packvit.models import PackedViT, load_model
from packvit.packing import PackedBatch, PackingConfig
from packvit.train.distill import check_field
from packvit.train.distributed import start_ranks
from packvit.train.engine import make_autocast


def teach_command(
    shards: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    teacher: Path,
    patch_size: int,
    resolution: int,
    out: Path,
    field: str = "teacher.npy",
    seq_len: int = 1024,
    sequences: int = 8,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    workers: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Write shards again, with a teacher's logits beside each image, for training with distill.logits_field.

    The same command after a kill goes on with the first shard that is missing.

    Args:
        shards: webdataset shards: files, patterns or folders.
        teacher: a run's folder, a checkpoint, or any file that load_model reads.
        patch_size: side in pixels of the patches that the teacher sees.
        resolution: side in pixels of the square with a view's area.
        out: gets shard-000000.tar and on, one for each of the shards, in their order.
        field: of each sample; holds float16 [classes].
        seq_len: slots in a sequence; raised to the longest view's tokens where it is shorter.
        sequences: sequences in a batch.
        precision: of matrix products; auto is bf16 on CUDA and fp32 on a CPU.
        workers: processes that decode.
        device: auto takes a GPU when there is one.
    """
    if patch_size < 1 or resolution < 1:
        raise ValueError(f"--patch-size {patch_size} and --resolution {resolution} must be at least 1")
    check_field("--field", field)
    paths = expand_shards(shards)
    packing = PackingConfig(seq_len=seq_len, sequences=sequences)
    model = load_model(teacher)
    if model.config.num_classes == 0:
        raise ValueError(f"{teacher} has no classification head, so it has no logits to write")
    place = start_ranks(device).device
    model, autocast = model.to(place), make_autocast(precision, place)
    claim(out, {"teacher": str(teacher), "budget": [patch_size, resolution], "field": field, "shards": paths})
    for number, path in enumerate(paths):
        target = out / f"shard-{number:06d}.tar"
        if target.exists():
            continue
        images = EvalSet([path])
        skipped = list(images.skipped)
        logits: dict[str, np.ndarray] = {}
        for loaded in images.batches(resolution, patch_size, packing, workers):
            skipped += loaded.skipped
            assert loaded.batch is not None
            logits |= answers(model, loaded.batch.to(place), autocast)
        write_taught(Shard.open(path), target, logits, field)
        print(f"{target}: {len(logits)} images, {number + 1} of {len(paths)} shards")
        for line in skipped:
            print(f"  left out: {line['key']}: {line['reason']}")


@torch.inference_mode()
def answers(model: PackedViT, batch: PackedBatch, autocast: AbstractContextManager) -> dict[str, np.ndarray]:
    """{key: float16 [classes]} of a batch on the model's device."""
    with autocast:
        logits = model(batch)
    return dict(zip(batch.keys, logits.half().cpu().numpy(), strict=True))


def claim(out: Path, note: dict) -> None:
    """Write down in `out` what its shards are made of.

    Raises:
        ValueError: they are made of something else.
    """
    path = out / "teacher.json"
    if path.exists() and json.loads(path.read_text()) != note:
        raise ValueError(f"{path} names another teacher, budget, field or other shards: take another --out")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(note, indent=1) + "\n")
