"""A run from start to finish: train, save the model, evaluate it, draw, and say what was made."""

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO

import torch

from packvit.data import EvalSet
from packvit.models import PackedViT, load_model, save_model
from packvit.packing import PackingConfig
from packvit.train.config import Config
from packvit.train.curves import draw_history
from packvit.train.distributed import Ranks, start_ranks, stop_ranks
from packvit.train.engine import make_autocast
from packvit.train.evaluate import check_budgets, evaluate
from packvit.train.loop import train
from packvit.train.metrics import known, read_json_lines
from packvit.train.preempt import catch_sigterm
from packvit.train.progress import Progress
from packvit.train.report import draw_accuracy
from packvit.train.trackers import Trackers


def run(config: Config) -> None:
    """Train, evaluate and fill the run's folder; every rank calls it.

    Raises:
        ValueError: see `packvit.train.loop.train` and `evaluate`.
    """
    if not config.data.shards:
        raise ValueError("data.shards names no training shards: add --data.shards PATH")
    needs_head = config.distill.needs_labels or config.distill.logits_field or config.data.val_shards
    if config.model.num_classes == 0 and needs_head:
        raise ValueError(
            "model.num_classes=0 leaves nothing to learn from labels or to evaluate: set it to their number"
        )
    ranks = start_ranks(config.device, config.train.timeout)
    if config.threads:
        torch.set_num_threads(config.threads)
    progress = Progress(quiet=not ranks.is_main)
    lock = None
    try:
        if ranks.is_main:
            (config.run_dir / "samples").mkdir(parents=True, exist_ok=True)
            lock = lock_folder(config.run_dir)
        # The validation set is opened first: a wrong path should not show after days of training.
        images = None
        if config.data.val_shards:
            images = EvalSet(config.data.val_shards, config.model.num_classes, config.data.label_field)
            check_budgets(config.model, *budgets(config), ranks.device)
        with Trackers() as trackers:
            with catch_sigterm() as preemption:
                model = train(config, ranks, progress, preemption, trackers)
            if model is None:
                return
            history = []
            if ranks.is_main:
                save_model(model, config.run_dir)
                history = read_json_lines(config.run_dir / "metrics.jsonl")
                progress.draw(partial(draw_history, history, config.run_dir))
                say_losses(history[-1], config, progress)
            if images is not None:
                packing = replace(config.packing, sequences=config.eval.sequences, max_batch_images=None)
                evaluator = Evaluator(
                    images, packing, config.train.precision, config.data.workers, ranks, progress
                )
                evaluator.write_results(model, *budgets(config), config.run_dir / "eval")
            for path in [config.run_dir / name for name in PICTURES] if history else ():
                trackers.image(history[-1]["step"], path.stem, path)
        progress.table("Made by this run", ["file", "what it is"], list_files(config.run_dir))
        ranks.barrier()  # a rank that leaves early would cut off those that still read from it
    finally:
        progress.stop()
        stop_ranks()
        if lock is not None:
            lock.close()


def say_losses(last: dict, config: Config, progress: Progress) -> None:
    """Say what was lost until the `last` line of metrics.jsonl, so that nothing is lost in silence."""
    if last["loss"] is None:
        progress.say(
            "The last steps had no finite gradient and changed nothing: lower optim.lr or look at the data"
        )
    if last.get("shrunk"):
        progress.say(
            f"{last['shrunk']} views were longer than packing.seq_len={config.packing.seq_len} and were "
            "shown at a lower resolution"
        )


def lock_folder(folder: Path) -> IO:
    """Hold `folder` for this process until the returned file is closed or the process ends.

    Raises:
        ValueError: another process holds it.
    """
    file = (folder / ".lock").open("w")
    # A worker that outlives a killed trainer must not hold what it inherited.
    os.register_at_fork(after_in_child=file.close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ValueError(f"another run is writing to {folder}: end it, or take another run_dir") from error
    return file


def budgets(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Resolutions and patch sizes to evaluate: as configured, else the training range's ends and middle."""
    low, high = config.views.resolution.low, config.views.resolution.high
    resolutions = config.eval.resolutions or tuple(sorted({low, (low + high) // 2, high}))
    return resolutions, config.eval.patch_sizes or config.views.patch_sizes


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on `images` and writes down what came out; every rank calls it."""

    images: EvalSet
    packing: PackingConfig
    precision: str
    workers: int
    ranks: Ranks
    progress: Progress

    def write_results(
        self, model: PackedViT, resolutions: Sequence[int], patch_sizes: Sequence[int], out: Path
    ) -> None:
        """Write `out`/results.json, skipped.jsonl and accuracy.png, and show the table."""
        skipped = list(self.images.skipped)
        autocast = make_autocast(self.precision, self.ranks.device)
        pairs = len(resolutions) * len(patch_sizes)
        rows = []
        for row in evaluate(
            model,
            self.images,
            resolutions,
            patch_sizes,
            self.packing,
            self.ranks,
            autocast,
            self.workers,
            skipped,
        ):
            rows.append(row)
            self.progress.say(
                f"Evaluated {len(rows)} of {pairs}: resolution {row['resolution']}, patch size "
                f"{row['patch_size']}: {row['accuracy']:.1%} of {row['images']} images"
            )
        if not self.ranks.is_main:
            return
        out.mkdir(parents=True, exist_ok=True)
        if any(row != known(row) for row in rows):
            self.progress.say(
                "The model's outputs are not finite at some budgets: results.json has null there"
            )
        (out / "results.json").write_text(json.dumps({"rows": known(rows)}, indent=1, allow_nan=False) + "\n")
        (out / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in skipped))
        if skipped:
            self.progress.say(f"{len(skipped)} images could not be used: {out / 'skipped.jsonl'} names them")
        self.progress.draw(partial(draw_accuracy, rows, out / "accuracy.png"))
        self._show(rows)

    def _show(self, rows: list[dict]) -> None:
        best = max(rows, key=lambda row: row["accuracy"])
        self.progress.table(
            "Accuracy by budget",
            ["resolution", "patch size", "tokens/image", "GFLOPs/image", "accuracy", "ECE"],
            [
                [
                    str(row["resolution"]),
                    str(row["patch_size"]),
                    f"{row['tokens_per_image']:.1f}",
                    f"{row['gflops_per_image']:.3f}",
                    f"{row['accuracy']:.1%}" + (" *" if row is best else "  "),
                    f"{row['ece']:.3f}",
                ]
                for row in rows
            ],
        )
        self.progress.say(
            f"Best (*): {best['accuracy']:.1%} at resolution {best['resolution']}, "
            f"patch size {best['patch_size']}"
        )


PICTURES = ("loss.png", "drop.png", "curves.png", "eval/accuracy.png")
MADE = {
    "config.yaml": "the configuration; packvit train takes it",
    "metrics.jsonl": "a line a logged step",
    "loss.png": "loss by images seen, patch size and resolution",
    "drop.png": "drop rate by images seen and resolution",
    "curves.png": "learning rate, gradient, padding and speed by step",
    "profile": "a trace and a table of the most expensive operations",
    "tensorboard": "to show with tensorboard --logdir",
    "samples/step-0.png": "the first packed sequences",
    "checkpoints": "to resume from",
    "model.safetensors": "the model; load_model and packvit eval take the folder",
    "config.json": "the model's configuration",
    "eval/results.json": "accuracy by resolution and patch size",
    "eval/accuracy.png": "accuracy against tokens per image",
    "audit.jsonl": "the keys of every step's images",
    "skipped.jsonl": "samples that could not be used",
}


def list_files(folder: Path) -> list[list[str]]:
    """(path, meaning) of what a run has left in its folder; empty files are not worth a line."""
    found = [(folder / name, meaning) for name, meaning in MADE.items()]
    return [[str(path), meaning] for path, meaning in found if path.exists() and path.stat().st_size > 0]


def keep_old(folder: Path) -> Path | None:
    """Rename a `folder` that holds results to the first free of `folder`-1, -2, ...; returns the new name."""
    if not (folder / "results.json").exists():
        return None
    kept = next(path for n in count(1) if not (path := folder.with_name(f"{folder.name}-{n}")).exists())
    folder.rename(kept)
    return kept


def evaluate_folder(
    checkpoint: Path,
    shards: Sequence[str],
    resolutions: Sequence[int],
    patch_sizes: Sequence[int],
    out: Path | None,
    packing: PackingConfig,
    precision: str,
    workers: int,
    device: str,
    label_field: str,
) -> None:
    """`packvit eval`: any model that `load_model` reads, at any budgets."""
    model = load_model(checkpoint)
    if model.config.num_classes == 0:
        raise ValueError(f"{checkpoint} has no classification head, so there is no accuracy to evaluate")
    ranks = start_ranks(device)
    progress = Progress(quiet=not ranks.is_main)
    try:
        images = EvalSet(shards, model.config.num_classes, label_field)
        evaluator = Evaluator(images, packing, precision, workers, ranks, progress)
        check_budgets(model.config, resolutions, patch_sizes, ranks.device)
        folder = out or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "eval"
        if ranks.is_main and (kept := keep_old(folder)):
            progress.say(f"Kept the results of before as {kept}")
        evaluator.write_results(model.to(ranks.device), resolutions, patch_sizes, folder)
        progress.say(f"Wrote {folder / 'results.json'}")
    finally:
        stop_ranks()
