"""`packvit teach SHARDS ...`: a teacher's logits, computed once and written into the shards beside the
images.

The teacher sees whole images at one budget, so these logits fit best to training without crops and flips: a
crop may not show what the teacher has seen.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from packvit.cli.options import read_options
from packvit.common.device import make_autocast
from packvit.common.files import check_writable, write_whole
from packvit.common.ranks import start_ranks
from packvit.data import EvalSet, FetchConfig, ShardSet, is_remote, write_with_logits
from packvit.data.make.manifest import read_manifest
from packvit.data.make.write import check_no_shards
from packvit.data.stores.stage import write_folder
from packvit.evaluate import Setting, check_pieces, check_settings, cut_chunks
from packvit.models import PackedViT, hash_model, load_model
from packvit.packing import PackedBatch, PackingConfig
from packvit.train.tasks.config import check_field


@dataclass(frozen=True)
class Teach:
    """Write shards again, with a teacher's logits beside each image, for training with distill.logits_field.

    If the command is killed, repeat it to continue with the first missing shard.

    Args:
        shards: webdataset shards: files, patterns or folders.
        teacher: a run's folder, a checkpoint, or any file that load_model reads.
        patch_size: side in pixels of the patches that the teacher sees.
        resolution: side in pixels of the square with a view's area.
        out: folder for shard-000000.tar and so on, one for each of the shards, in their order. It may be in
            an object store: all shards are then written to the cache folder before they are uploaded.
        field: field of each sample for the logits, float16 [classes].
        seq_len: seq_len times `sequences` is the number of tokens in a batch; a longer view has a batch of
            its own.
        sequences: see `seq_len`.
        precision: precision of matrix products; auto is bf16 on CUDA and fp32 on a CPU.
        workers: processes that decode.
        device: auto uses a GPU if there is one.
        fetch: how remote and gzipped shards are fetched.
    """

    shards: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS...")]
    teacher: Path
    patch_size: int
    resolution: int
    out: str
    field: str = "teacher.npy"
    seq_len: int = 1024
    sequences: int = 8
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    workers: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    fetch: FetchConfig = dataclasses.field(default_factory=FetchConfig)


def main(arguments: Sequence[str]) -> None:
    """Teach."""
    options = read_options(Teach, "packvit teach", arguments)
    if options.patch_size < 1 or options.resolution < 1:
        raise ValueError(
            f"--patch-size {options.patch_size} and --resolution {options.resolution} must be at least 1"
        )
    check_field("--field", options.field)
    task = (options.shards, options.teacher, options.patch_size, options.resolution, options.field)
    write_folder(options.out, repr(task), partial(teach, options))


def teach(options: Teach, out: Path) -> None:
    """Write the shards to a folder."""
    check_writable(out)
    packing = PackingConfig(seq_len=options.seq_len, sequences=options.sequences)
    shards = ShardSet.find(options.shards, options.fetch)
    if out.resolve() in [Path(path).resolve().parent for path in shards.paths if not is_remote(path)]:
        raise ValueError(f"--out {out} holds the shards that are read: use another folder")
    model = load_model(options.teacher)
    if model.config.num_classes == 0:
        raise ValueError(f"{options.teacher} has no classification head, so it has no logits to write")
    device = start_ranks(options.device).device
    setting = Setting(options.patch_size, options.resolution)
    check_settings(model.config, [setting], device)
    check_pieces(packing, [setting])
    claim(options, shards, model, out)
    listed = read_manifest(out)
    model, autocast = model.to(device), make_autocast(options.precision, device)
    for number, path in enumerate(shards.paths):
        target = out / f"shard-{number:06d}.tar"
        known = listed.get(target.name)
        if known and target.exists() and target.stat().st_size == known["bytes"]:
            continue
        # A name that was found is no pattern any more.
        literal = re.sub(r"([\\{}])", r"\\\1", path)
        images = EvalSet([literal], fetch=options.fetch, as_training=True)
        logits, skipped = answer_all(model, images, options, packing, autocast)
        write_with_logits(shards.open(number), target, logits, options.field)
        print(f"{target}: {len(logits)} images, {number + 1} of {len(shards)} shards")
        for line in skipped:
            print(f"  left out: {line['key']}: {line['reason']}")


def answer_all(
    model: PackedViT,
    images: EvalSet,
    options: Teach,
    packing: PackingConfig,
    autocast: AbstractContextManager,
) -> tuple[dict[str, np.ndarray], list[dict]]:
    """{key: float16 [classes]} of all images that can be used, and the lines of those that cannot."""
    skipped = list(images.skipped)
    logits: dict[str, np.ndarray] = {}
    device = next(model.parameters()).device
    setting, tokens = Setting(options.patch_size, options.resolution), packing.seq_len * packing.sequences
    chunks = cut_chunks(len(images.headers), [setting])
    for piece in images.pieces([setting], tokens, chunks, options.workers, device):
        skipped += piece.skipped
        if len(piece.places):
            logits |= answer(model, piece.batch, autocast)
    return logits, skipped


@torch.inference_mode()
def answer(model: PackedViT, batch: PackedBatch, autocast: AbstractContextManager) -> dict[str, np.ndarray]:
    """{key: float16 [classes]} of a batch on the model's device."""
    with autocast:
        logits = model(batch)
    return dict(zip(batch.keys, logits.half().cpu().numpy(), strict=True))


def claim(options: Teach, shards: ShardSet, model: PackedViT, out: Path) -> None:
    """Write down in the output folder what its shards are made of.

    Raises:
        ValueError: they are made of something else.
    """
    note = {
        "teacher": str(options.teacher),
        "weights": hash_model(model),
        "budget": [options.patch_size, options.resolution],
        "field": options.field,
        "shards": list(shards.paths),
        "contents": shards.fingerprint()["digest"],
    }
    path = out / "teacher.json"
    if not path.exists():
        check_no_shards(out)
    elif json.loads(path.read_text()) != note:
        raise ValueError(f"{path} names another teacher, budget, field or other shards: use another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(note, indent=1) + "\n")
