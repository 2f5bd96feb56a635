"""The training loop, read from top to bottom: batches, schedule, step, validate, log, save.

All batches of a step are taken before its first forward pass, because the gradient is divided by the number
of images of the whole step.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from packvit.common.display import Display
from packvit.common.ranks import Ranks, join_ranks
from packvit.data import DataError, DataPlan, LoadedBatch, TrainLoader, check_shared, merge_states
from packvit.models import PackedViT
from packvit.train.config import Config, save_config
from packvit.train.mirror.mirror import Mirror
from packvit.train.step.checkpoint import Checkpointer
from packvit.train.step.interface import StepBatches
from packvit.train.step.kept import CHECKPOINTS
from packvit.train.step.kernels import choose_kernels
from packvit.train.step.length import Counters, Length
from packvit.train.step.resume import find_resume
from packvit.train.step.schedule import lr_factor
from packvit.train.step.step import Engine, train_step
from packvit.train.tasks.start import make_module
from packvit.train.tasks.task import Task
from packvit.train.validate.validation import Validation
from packvit.train.watch.checks import SameRun, check_weights
from packvit.train.watch.log import RunLog
from packvit.train.watch.patience import Interrupted, Patience
from packvit.train.watch.peak import find_peaks
from packvit.train.watch.preempt import Preemption
from packvit.train.watch.profiler import Profiler
from packvit.train.watch.trackers import Trackers
from packvit.train.watch.window import Taken

VALIDATION = "validation"  # a part of checkpoints that not all runs have


@dataclass
class Training:
    """Everything that a run holds while it trains; `set_up` makes it."""

    config: Config
    ranks: Ranks
    task: Task
    loader: TrainLoader
    engine: Engine
    counters: Counters
    checkpointer: Checkpointer
    length: Length
    validation: Validation | None = None

    def done(self) -> float:
        """The progress of the run, in the unit of its length."""
        return getattr(self.counters, self.length.unit)

    def over(self) -> bool:
        """Whether training is complete: the run has reached its length, or its validation ends it early."""
        stopped = self.validation is not None and self.validation.stopped
        return stopped or self.done() >= self.length.total

    def save(self) -> None:
        """Write a checkpoint of the last step, unless there is one.

        Raises:
            OSError: it cannot be written.
            ValueError: the run has diverged.
        """
        if self.checkpointer.saved != self.counters.step:
            check_weights(self.engine, self.counters.step)
            self.checkpointer.save(self.counters.step)


class LoaderPart:
    """The loaders of all ranks as a part of a checkpoint."""

    def __init__(self, loader: TrainLoader, ranks: Ranks) -> None:
        self.loader = loader
        self.ranks = ranks

    def state_dict(self) -> dict[str, Any]:
        """The state of all ranks' streams on the main rank, which writes it; {} on the others."""
        states = self.ranks.gather_main(self.loader.state_dict())
        return merge_states(states) if states else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Each rank continues with its streams."""
        self.loader.load_state_dict(state)


def set_up(
    config: Config,
    task: Task,
    ranks: Ranks,
    display: Display,
    validation: Validation | None = None,
    mirror: Mirror | None = None,
) -> Training:
    """Everything that a run needs, in the state of its newest checkpoint if there is one.

    Args:
        validation: the validation of a run that validates during training.
        mirror: the mirror of a run whose folder is in a store.

    Raises:
        FileNotFoundError, ValueError: data, configuration, a model to start with or the checkpoint cannot be
            used.
    """
    targets = {**task.targets, **config.data.text_targets()}
    pairs = config.consistency.active
    plan = DataPlan(config.data, config.views, config.packing, config.seed, targets, task.teachers, pairs)
    loader = TrainLoader(plan, ranks.rank, ranks.world_size, ranks.device)
    counters, length = Counters(), config.train.length
    folder, asked = config.folder / CHECKPOINTS, config.train.resume_from
    resume = find_resume(folder, asked, display.say)
    same, data = SameRun(config, display, ranks.world_size), LoaderPart(loader, ranks)
    if resume.path is not None:
        resume.load({"config": same, "data": data, "counters": counters})
        if validation is not None and VALIDATION in resume.notes:
            resume.load({VALIDATION: validation})
    done, stopped = getattr(counters, length.unit), validation is not None and validation.stopped
    if done < length.total and not stopped:
        held = 0 if ranks.device.type == "cuda" else config.train.accumulate
        if advice := check_shared(plan, ranks.world_size, held):
            display.say(f"Little shared memory: {advice}")
        # Workers are forks of this process: they come before the threads of CUDA and NCCL.
        loader.begin()
    join_ranks(ranks, config.train.timeout)
    if mirror is not None:
        mirror.join(validates=bool(config.data.val_shards))
    module = make_module(config, task, resumed=resume.path is not None)
    engine = Engine(module, config.train, config.optim, ranks, config.seed)
    task.prepare(engine)
    parts = {"config": same, "scaler": engine.scaler, "data": data, "counters": counters}
    parts |= {VALIDATION: validation} if validation is not None else {}
    checkpointer = Checkpointer(folder, config.train, ranks, engine, parts, mirror)
    if resume.path is not None:
        resume.load({"scaler": engine.scaler})
        checkpointer.load(resume.path)
        checkpointer.resumed_from = asked or resume.notes.get("resumed_from", "")
        display.say(f"Resuming from {config.place}/{resume.path.relative_to(config.folder)}")
        if done >= length.total:
            display.say(f"Nothing to train: {length.unit} is {done} already, of {length.total}")
        elif stopped:
            display.say(f"Nothing to train: eval.patience ended the run after step {counters.step}")
    ranks.barrier()  # nobody writes before all have read
    checkpointer.tidy(resume.aside)
    if ranks.is_main:
        save_config(config, config.folder / "config.yaml")
        if validation is not None:
            validation.kept.go_back(counters.step)
    if mirror is not None:
        mirror.begin(counters.step)
    return Training(config, ranks, task, loader, engine, counters, checkpointer, length, validation)


def train(
    training: Training, display: Display, preemption: Preemption, trackers: Trackers
) -> PackedViT | None:
    """Train to the end of the run; the model to evaluate, or None if the run was asked to stop before.

    Raises:
        ImportError: a tracker is not installed.
        ValueError: too many samples are bad, or the run has diverged.
    """
    config, ranks, counters = training.config, training.ranks, training.counters
    loader, engine, checkpointer = training.loader, training.engine, training.checkpointer
    length, options, began = training.length, config.train, counters.step
    log = RunLog(config, ranks, counters, loader, display, trackers)
    profiler = None
    if options.profile and ranks.is_main:
        profiler = Profiler(config, ranks.device, counters.step, display)
    log.peaks = find_peaks(ranks.device, options.peak_tflops)
    loader.watch = Patience(loader, ranks, preemption, options.timeout)
    batches = iter(loader) if not training.over() else iter(())
    display.start(length.unit.removesuffix("_seen"), training.done(), length.total)
    leave = False
    while not training.over() and not leave:
        before = training.done()
        # ---- Batches ------------------------------------------------------------------------------------
        loader.mark()
        try:
            taken = take_batches(batches, options.accumulate, training.task, engine.depth_of(counters.step))
        except DataError as error:
            log.lose(error.skipped)
            raise
        images, tokens, flops, asked, stuck = ranks.sum([*taken.counts(), preemption.asked, taken.stuck])
        leave = asked > 0
        if stuck:
            # A rank that was asked to end has waited for a batch in vain: no rank takes this step.
            loader.back()
            break
        step = StepBatches(taken.batches, images)
        if counters.step == began and ranks.device.type == "cuda":
            display.say(choose_kernels(engine, step.batches[0].batch))
        if counters.step == 0:
            log.picture(step.batches[0].batch)
        counters.step += 1
        counters.images_seen += int(images)
        counters.tokens_seen += int(tokens)
        counters.gflops_seen += flops / 1e9

        # ---- Step ---------------------------------------------------------------------------------------
        factor = lr_factor(before, training.done(), length.total, config.optim)
        result = None
        if images:  # without any, momentum and decay would move the weights all the same
            result = train_step(engine, training.task, step, counters.step - 1, factor)
        log.add_step(taken, result, config.optim.lr * factor)

        # ---- Validate, log and save ---------------------------------------------------------------------
        write_down(training, log)
        if profiler is not None:
            profiler.step()
    if counters.step > began:
        log.end_window()
        training.save()
    display.stop()
    if profiler is not None:
        profiler.stop()
    checkpointer.wait()
    if training.over():
        if training.validation is not None:
            training.validation.conclude()
        return engine.whole().eval()
    display.say(f"Asked to end: saved step {counters.step}; the same command resumes from there")
    return None


def write_down(training: Training, log: RunLog) -> None:
    """Validate, write a line of the log and save a checkpoint, each if it is due after this step."""
    config, counters = training.config.train, training.counters
    validation, checkpointer = training.validation, training.checkpointer
    save = counters.step % config.checkpoint_every == 0
    # A window ends with a checkpoint, because what it sums up would be missing after a resume.
    if validation is not None and validation.due(counters.step, training.done() >= training.length.total):
        checkpointer.wait()  # no process is forked, to decode, while a thread of this one writes
        log.end_window(partial(validation.validate, training.engine, counters))
    elif counters.step % config.log_every == 0 or save:
        log.end_window()
    if save:
        training.save()
    if checkpointer.pending is not None:
        checkpointer.poll()


def take_batches(batches: Iterator[LoadedBatch], number: int, task: Task, depth: int | None = None) -> Taken:
    """The next `number` batches of this rank, or fewer if it was asked to end while it waited.

    Args:
        depth: blocks that run in the step.
    """
    taken = Taken(depth=depth)
    for _ in range(number):
        before = time.perf_counter()
        try:
            loaded = next(batches)
        except Interrupted:
            taken.stuck = True
            break
        taken.wait += time.perf_counter() - before
        taken.add(loaded, task.flops(loaded, depth))
    return taken
