"""`packvit teach SHARDS ...`: a teacher's logits, computed once and written into the shards beside the
images.

The teacher sees whole images at one budget, so these logits fit best to training without crops and flips: a
crop may not show what the teacher has seen.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from packvit.cli.options import read_options
from packvit.common.engine.engine import EngineConfig
from packvit.common.engine.make import EngineFlags, make_engine
from packvit.common.files import check_writable, require_shared, write_whole
from packvit.common.ranks import find_ranks
from packvit.data import FetchConfig, ShardSet, is_remote
from packvit.data.make.manifest import Listed, Listing, read_manifest
from packvit.data.make.write import check_no_shards
from packvit.data.stores.stage import write_folder
from packvit.evaluate import Setting, check_pieces, check_settings
from packvit.evaluate.predict.teacher import Lesson, Teacher
from packvit.evaluate.predict.teacher import teach as teach_shard
from packvit.models import PackedViT, hash_model, load_model
from packvit.packing import PackingConfig, derive_seed
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
        engine: see its flags.
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
    engine: EngineFlags = dataclasses.field(default_factory=EngineConfig)


def main(arguments: Sequence[str]) -> None:
    """Teach."""
    options = read_options(Teach, "packvit teach", arguments)
    if options.patch_size < 1 or options.resolution < 1:
        raise ValueError(
            f"--patch-size {options.patch_size} and --resolution {options.resolution} must be at least 1"
        )
    check_field("--field", options.field)
    task = (options.shards, options.teacher, options.patch_size, options.resolution, options.field)
    load = cache(partial(load_model, options.teacher))
    write_folder(options.out, repr(task), partial(look, options, load), partial(teach, options, load))


def look(options: Teach, load: Callable[[], PackedViT]) -> str:
    """What tells the teacher and the shards from others."""
    shards = ShardSet.find(options.shards, options.fetch)
    return f"{hash_model(load())} {options.precision} {shards.digest()}"


def teach(options: Teach, load: Callable[[], PackedViT], out: Path) -> None:
    """Write the shards to a folder."""
    check_writable(out)
    packing = PackingConfig(seq_len=options.seq_len, sequences=options.sequences)
    shards = ShardSet.find(options.shards, options.fetch)
    if out.resolve() in [Path(path).resolve().parent for path in shards.paths if not is_remote(path)]:
        raise ValueError(f"--out {out} holds the shards that are read: use another folder")
    model = load()
    if model.config.num_classes == 0:
        raise ValueError(f"{options.teacher} has no classification head, so it has no logits to write")
    local = options.engine.engine == "local"
    setting = Setting(options.patch_size, options.resolution)
    check_settings(model.config, [setting], find_ranks(options.device if local else "cpu").device)
    check_pieces(packing, [setting])
    weights = hash_model(model)
    lesson = Lesson(
        options.teacher,
        weights,
        setting,
        packing,
        options.precision,
        options.workers,
        options.fetch,
        options.field,
        claim(options, shards, weights, out),
    )
    targets = [out / f"shard-{number:06d}.tar" for number in range(len(shards))]
    listed = read_manifest(out)
    missing = [number for number, target in enumerate(targets) if not is_whole(target, listed)]
    jobs = [(shards.paths[number], targets[number]) for number in missing]
    setup = partial(Teacher, lesson, model if local else None)
    with make_engine(options.engine, Console(), 1) as engine, Listing() as listing:
        results = engine.run("teaching", teach_shard, jobs, setup, options.device)
        for (file, samples, skipped), number in zip(results, missing, strict=True):
            require_shared(file)
            listing.add(Listed(targets[number], samples, file.stat().st_size, file))
            print(f"{targets[number]}: {samples} images, {number + 1} of {len(shards)} shards")
            for line in skipped:
                print(f"  left out: {line['key']}: {line['reason']}")
    for path in out.glob(".*.partial"):  # of processes that were killed
        path.unlink()


def is_whole(shard: Path, listed: dict[str, dict[str, int]]) -> bool:
    """Whether a shard is there as the manifest says."""
    known = listed.get(shard.name)
    return bool(known) and shard.exists() and shard.stat().st_size == known["bytes"]


def claim(options: Teach, shards: ShardSet, weights: str, out: Path) -> str:
    """Write down in the output folder what its shards are made of; gives a hash of it.

    Raises:
        ValueError: they are made of something else.
    """
    note = {
        "teacher": str(options.teacher),
        "weights": weights,
        "budget": [options.patch_size, options.resolution],
        "precision": options.precision,
        "field": options.field,
        "shards": list(shards.paths),
        "contents": shards.digest(),
    }
    path = out / "teacher.json"
    if not path.exists():
        check_no_shards(out)
    elif json.loads(path.read_text()) != note:
        raise ValueError(
            f"{path} names another teacher, budget, precision, field or other shards: use another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(note, indent=1) + "\n"
    write_whole(path, text)
    return f"{derive_seed(text):032x}"
