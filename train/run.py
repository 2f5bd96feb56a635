"""A run from start to finish: train, save the model, evaluate it, draw, and list the files."""

import signal
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from packvit.common.device import arithmetic
from packvit.common.display import Display
from packvit.common.json_lines import read_json_lines
from packvit.common.ranks import find_ranks, stop_ranks
from packvit.data import EvalSet, SampleCounts, end_workers
from packvit.evaluate import (
    MAIN,
    Asked,
    Evaluation,
    Subject,
    check_memory,
    check_pieces,
    check_settings,
    evaluate,
)
from packvit.models import PackedViT, hash_model
from packvit.train.config import Config
from packvit.train.loop import Training, set_up, train
from packvit.train.mirror.fetch import fetch_run
from packvit.train.mirror.mirror import Mirror
from packvit.train.tasks.make import make_task
from packvit.train.validate.settings import (
    eval_packing,
    eval_settings,
    open_validation,
    validation_settings,
)
from packvit.train.validate.validation import Validation, numbers_of
from packvit.train.watch.checks import commonest_reason
from packvit.train.watch.curves import draw_history
from packvit.train.watch.introduce import introduce
from packvit.train.watch.preempt import catch_signals
from packvit.train.watch.trackers import Trackers

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
    "best": "the best model of all validations; best.json says how good",
    "model.safetensors": "the model; load_model and packvit eval take the folder",
    "config.json": "the model's configuration",
    "tokenizer.*": "the tokeniser of its text tower",
    "eval/results.json": "what the task measures, and what it costs, by resolution and patch size",
    "eval/predictions.npz": "the answer to every image; docs/evaluate.md says how to read it",
    "eval/*.png": "the same against tokens per image",
    "eval/report.html": "all that was measured, as a page",
    "audit.jsonl": "the keys of every step's images",
    "skipped.jsonl": "samples that could not be used",
}


def run(config: Config, measure: bool = True) -> None:
    """Train, evaluate and fill the run's folder; every rank calls it.

    Args:
        measure: whether the trained model is saved, drawn and evaluated.

    Raises:
        ValueError, ImportError: see `packvit.train.loop` and `packvit.evaluate`.
        KeyboardInterrupt: Ctrl-C asked it to end; it has saved, unless Ctrl-C was pressed twice.
    """
    if not config.data.shards:
        raise ValueError("data.shards names no training shards: add --data.shards PATH")
    check_memory(config.packing, config.views.patch_sizes)
    ranks = find_ranks(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    display = Display(quiet=not ranks.is_main)
    lock = None
    mirror = None
    try:
        if ranks.is_main:
            (config.folder / "samples").mkdir(parents=True, exist_ok=True)
            lock = lock_folder(config.folder)
        if config.url is not None:
            fetch_run(config.url, config.folder, config.train.resume_from, display.say)
            mirror = Mirror(config.url, config.folder, ranks, config.train, display.say)
        task = make_task(config)
        # The validation set is opened first: a wrong path should not show after days of training.
        images = open_validation(config, task)
        numbers = arithmetic(config.train.precision, config.train.deterministic)
        with numbers, Trackers() as trackers:
            with catch_signals() as preemption:
                validation = None
                if config.eval.every and images is not None:
                    validation = Validation(config, task, images, ranks, display)
                training = set_up(config, task, ranks, display, validation, mirror)
                if images is not None:
                    for settings in (eval_settings(config), validation_settings(config)):
                        check_settings(config.model, settings, ranks.device)
                        check_pieces(eval_packing(config), settings)
                if ranks.is_main:
                    introduce(training, display)
                if validation is not None:
                    display.say(validation.describe())
                model = train(training, display, preemption, trackers)
            if model is None:
                if mirror is not None:
                    mirror.finish()
                if preemption.by == signal.SIGINT:
                    raise KeyboardInterrupt
                return
            if measure:
                finish(training, model, images, display, trackers)
        if mirror is not None:
            mirror.finish()
        if measure:
            display.table("Made by this run", ["file", "what it is"], list_files(config))
        ranks.barrier()  # a rank that leaves early would cut off those that still read from it
    except Exception:
        if mirror is not None:
            mirror.salvage()
        raise
    finally:
        display.stop()
        end_workers()
        stop_ranks()
        if lock is not None:
            lock.release()


def finish(
    training: Training, model: PackedViT, images: EvalSet | None, display: Display, trackers: Trackers
) -> None:
    """Save the trained model, draw the run's history, evaluate the model."""
    config, ranks = training.config, training.ranks
    history, heads = [], training.engine.whole_heads()
    bad = round(SampleCounts(*ranks.sum(training.loader.counts())).bad)
    if ranks.is_main:
        training.engine.module.save(model, heads, config.folder)
        history = read_json_lines(config.folder / "metrics.jsonl")
        display.draw(partial(draw_history, history, config.folder))
        say_losses(history[-1], bad, config, display)
    if images is not None:
        evaluation = Evaluation(
            config.folder / "eval",
            eval_packing(config),
            ranks,
            config.data.workers,
            config.train.precision,
            display,
        )
        evaluators = [make(images) for make in training.task.evaluators]
        subject = Subject(
            config.run_dir.name,
            config.place,
            model,
            hash_model(model),
            evaluators,
            config.contrastive.loss or config.train.loss,
        )
        asked = Asked({MAIN: images}, eval_settings(config), cost=config.eval.cost)
        rows = evaluate(evaluation, [subject], asked)
        if history:
            step = history[-1]["step"]
            trackers.log({"step": step, "eval": {row["setting"]: numbers_of(row) for row in rows}})
            for path in sorted((config.folder / "eval").glob("*.png")):
                trackers.image(step, path.stem, path)


def say_losses(last: dict, bad: int, config: Config, display: Display) -> None:
    """Report what was lost, so that nothing is lost silently.

    Args:
        last: the last line of metrics.jsonl.
        bad: number of samples that could not be used, including before a resume.
    """
    if last["loss"] is None:
        display.say(
            "The last steps had no finite gradient and changed nothing: lower optim.lr or look at the data"
        )
    if last.get("shrunk"):
        display.say(
            f"{last['shrunk']} views were longer than packing.seq_len={config.packing.seq_len} and were "
            "shown at a lower resolution"
        )
    if bad:
        display.say(
            f"{bad} samples could not be used{commonest_reason(config.folder)}; "
            f"{config.folder / 'skipped.jsonl'} names them"
        )


def lock_folder(folder: Path) -> FileLock:
    """Hold `folder` for this process until the lock is released or the process ends.

    Raises:
        ValueError: another process holds it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another run is writing to {folder}: end it, or use another run_dir") from error
    return lock


def list_files(config: Config) -> list[list[str]]:
    """(path, meaning) of the files that a run has written to its folder, except empty ones."""
    folder = config.folder
    found = [(path, meaning) for name, meaning in MADE.items() for path in sorted(folder.glob(name))]
    return [
        [f"{config.place}/{path.relative_to(folder)}", meaning]
        for path, meaning in found
        if path.stat().st_size > 0
    ]
