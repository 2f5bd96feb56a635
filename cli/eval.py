"""`packvit eval CHECKPOINT ...`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from packvit.common.device import make_autocast
from packvit.common.display import Display
from packvit.common.files import check_writable
from packvit.common.ranks import start_ranks, stop_ranks
from packvit.data import ClassTarget, EvalSet, FetchConfig
from packvit.evaluate import Accuracy, Evaluation, check_budgets, check_memory, write_results
from packvit.models import load_model
from packvit.packing import PackingConfig


@dataclass(frozen=True)
class Eval:
    """Evaluate one model at every resolution and patch size asked for.

    Args:
        checkpoint: a run's folder, a checkpoint, or any file that load_model reads.
        shards: webdataset shards: files, patterns or folders.
        resolutions: sides in pixels of the square with a view's area.
        patch_sizes: sides of a patch in pixels.
        out: folder for results.json, accuracy.png and skipped.jsonl; by default CHECKPOINT/eval. Results that
            are there already are kept under another name.
        seq_len: slots in a sequence; raised to the longest view's tokens where it is shorter.
        sequences: sequences in a batch.
        precision: of matrix products; auto is bf16 on CUDA and fp32 on a CPU.
        workers: processes that decode.
        device: auto takes a GPU when there is one.
        label_field: of every sample, such as cls or json:label.
        fetch: how remote and gzipped shards are fetched.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    shards: tuple[str, ...]
    resolutions: tuple[int, ...]
    patch_sizes: tuple[int, ...]
    out: Path | None = None
    seq_len: int = 1024
    sequences: int = 8
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    workers: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    label_field: str = "cls"
    fetch: FetchConfig = field(default_factory=FetchConfig)


def main(arguments: Sequence[str]) -> None:
    """Evaluate."""
    options = tyro.cli(Eval, prog="packvit eval", args=arguments)
    check_values(options)
    checkpoint = options.checkpoint
    folder = options.out or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "eval"
    check_writable(folder)
    packing = PackingConfig(seq_len=options.seq_len, sequences=options.sequences)
    model = load_model(options.checkpoint)
    classes = model.config.num_classes
    if classes == 0:
        raise ValueError(
            f"{options.checkpoint} has no classification head, so there is no accuracy to evaluate"
        )
    ranks = start_ranks(options.device)
    display = Display(quiet=not ranks.is_main)
    try:
        targets = {"label": ClassTarget(options.label_field, classes=classes)}
        images = EvalSet(options.shards, targets, options.fetch)
        check_budgets(model.config, options.resolutions, options.patch_sizes, ranks.device)
        for patch_size in options.patch_sizes:
            check_memory(packing, [patch_size])
        autocast = make_autocast(options.precision, ranks.device)
        evaluation = Evaluation(images, (Accuracy,), packing, ranks, options.workers, autocast)
        model = model.to(ranks.device)
        sizes = options.resolutions, options.patch_sizes
        write_results(evaluation, model, *sizes, folder, display, keep=True)
        display.say(f"Wrote {folder / 'results.json'}")
    finally:
        stop_ranks()


def check_values(options: Eval) -> None:
    """Refuse lists without values, and sizes below 1.

    Raises:
        ValueError: names the flag.
    """
    lists = {
        "resolutions": options.resolutions,
        "patch-sizes": options.patch_sizes,
        "shards": options.shards,
    }
    for name, values in lists.items():
        if not values:
            raise ValueError(f"--{name} needs at least one value")
        if any(isinstance(value, int) and value < 1 for value in values):
            raise ValueError(f"--{name} {' '.join(map(str, values))}: every value must be at least 1")
