"""The training loop, read from top to bottom: batches, schedule, forward, loss, step, log, save.

The gradient of a step is the mean over all images of the step, over all ranks and accumulated batches.
All batches of a step are therefore taken before the first forward pass. A step whose gradient is not
finite changes nothing but the counters.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial

import torch

from packvit.data import DataError, LoadedBatch, StoredLogits, TrainLoader, merge_states
from packvit.models import PackedViT, ViTConfig
from packvit.packing import BatchStats, PackedBatch, derive_seed
from packvit.train.checkpoint import Checkpointer, find_checkpoints, load_checkpoint, read_progress
from packvit.train.checks import check_bad_share, check_finite, check_same_run, check_weights
from packvit.train.config import Config, plain_config, save_config
from packvit.train.distributed import Ranks
from packvit.train.engine import Engine
from packvit.train.groups import image_facts
from packvit.train.metrics import JsonLines, Window, peak_tflops
from packvit.train.objective import Objective
from packvit.train.preempt import Preemption
from packvit.train.profiler import Profiler
from packvit.train.progress import Progress
from packvit.train.report import draw_samples
from packvit.train.schedule import lr_factor
from packvit.train.student import make_student
from packvit.train.teachers import load_teachers
from packvit.train.trackers import Trackers


@dataclass
class Counters:
    """How far the run is, over all ranks."""

    step: int = 0
    images_seen: int = 0
    tokens_seen: int = 0
    nonfinite_steps: int = 0
    gflops_seen: float = 0.0


@dataclass
class Taken:
    """What one step of this rank trains on: its batches, counted, and the samples left out of them.

    `views` holds for each batch the same images as the teachers see them, `flops` what all of it costs.
    """

    batches: list[PackedBatch] = field(default_factory=list)
    views: list[list[PackedBatch]] = field(default_factory=list)
    stats: BatchStats = field(default_factory=lambda: BatchStats(0, 0, 0, 0, 0))
    skipped: list[dict] = field(default_factory=list)
    flops: float = 0.0


def train(
    config: Config, ranks: Ranks, progress: Progress, preemption: Preemption, trackers: Trackers
) -> PackedViT | None:
    """Train to the end of the run and return the model to evaluate; None if it was asked to stop before.

    Raises:
        ImportError: a tracker is not installed.
        ValueError: data or configuration cannot be used, too many samples are bad, or gradients stay
            not finite.
    """
    # ---- Data, model, optimizer -----------------------------------------------------------------
    stored = config.distill.logits_field
    loader = TrainLoader(
        config.data,
        config.views,
        config.packing,
        config.seed,
        config.model.num_classes if config.distill.needs_labels else None,
        ranks.rank,
        ranks.world_size,
        pin_memory=ranks.device.type == "cuda",
        teachers=config.distill.budgets(config.views),
        stored=StoredLogits(stored, config.model.num_classes) if stored else None,
    )
    teachers = load_teachers(config)
    checkpointer = Checkpointer(config.run_dir / "checkpoints", config.train, ranks)
    found = find_checkpoints(checkpointer.folder)
    engine = Engine(make_student(config, teachers, resumed=bool(found)), config, ranks)
    objective = Objective(config, teachers, engine)
    peak = peak_tflops(ranks.device, config.train.peak_tflops)
    counters = Counters()

    # ---- Resume ---------------------------------------------------------------------------------
    if found:
        saved = read_progress(found[-1])
        check_same_run(found[-1], saved["config"], config, progress)
        load_checkpoint(found[-1], engine)
        engine.scaler.load_state_dict(saved["scaler"])
        loader.load_state_dict(saved["data"])
        counters = Counters(**saved["counters"])
        progress.say(f"Resuming from {found[-1]}")
        done, length = getattr(counters, config.train.length[0]), config.train.length[1]
        if done >= length:
            progress.say(f"Nothing to train: {config.train.length[0]} is {done} already, of {length}")
    ranks.barrier()  # nobody writes before all have read
    if ranks.is_main:
        save_config(config, config.run_dir / "config.yaml")
        trackers.start(config, counters.step)
    metrics = JsonLines(config.run_dir / "metrics.jsonl", counters.step, write=ranks.is_main)
    skipped = JsonLines(config.run_dir / "skipped.jsonl", counters.step, write=ranks.is_main)
    audit = JsonLines(config.run_dir / "audit.jsonl", counters.step, ranks.is_main and config.data.audit)

    # ---- Steps ----------------------------------------------------------------------------------
    window = Window()
    skipped_here: list[dict] = []  # not yet written
    nonfinite = 0  # in a row
    field, length = config.train.length
    batches = iter(loader) if getattr(counters, field) < length else iter(())
    progress.start(field, getattr(counters, field), length)
    profiled = config.train.profile if ranks.is_main else 0
    profiler = Profiler(config.run_dir / "profile", profiled, ranks.device, counters.step, progress)
    while (before := getattr(counters, field)) < length:
        try:
            taken = take_batches(batches, config.train.accumulate, config.model, objective, window)
        except DataError as error:
            for lost in skipped_here + error.skipped:
                skipped.write({"step": counters.step} | lost)
            raise
        skipped_here += taken.skipped
        images, tokens, flops, leave = ranks.sum(
            [taken.stats.images, taken.stats.tokens, taken.flops, preemption.asked]
        )
        if counters.step == 0 and ranks.is_main:
            picture = config.run_dir / "samples/step-0.png"
            progress.draw(partial(draw_samples, taken.batches[0], picture))
            trackers.image(0, "samples", picture)
        counters.step += 1
        counters.images_seen += int(images)
        counters.tokens_seen += int(tokens)
        counters.gflops_seen += flops / 1e9

        factor = lr_factor(before, getattr(counters, field), length, config.optim)
        # What the forward pass draws depends on the step alone, so a resumed run draws the same.
        torch.manual_seed(derive_seed(config.seed, "step", counters.step, ranks.rank) % 2**63)
        losses = []
        for index, waiting in enumerate(taken.batches):
            batch = waiting.to(ranks.device)
            views = [view.to(ranks.device) for view in taken.views[index]]
            with engine.sharing(last=index + 1 == len(taken.batches)):
                with engine.autocast:
                    outputs = engine.forward(batch)
                loss = objective(outputs, batch, views)  # [N]
                engine.backward(loss.sum(), images)
            losses.append(loss.detach())
        # The one wait for the device of a step; the norm is the same on all ranks, so all decide the same.
        grad_norm = engine.clip()
        finite = math.isfinite(grad_norm)
        window.add_step(image_facts(taken.batches), torch.cat(losses).numpy(force=True) if finite else None)
        engine.step(finite, counters.step - 1, factor)
        if finite:
            nonfinite = 0
        else:
            nonfinite += 1
            counters.nonfinite_steps += 1
            check_finite(nonfinite, counters.step, config)

        if config.data.audit:
            shares = ranks.gather([batch.keys for batch in taken.batches])
            # Rank r's a-th batch is number a * ranks + r of the step.
            keys = [key for share in zip(*shares, strict=True) for batch in share for key in batch]
            audit.write({"step": counters.step, "keys": keys})
        last = getattr(counters, field) >= length or leave > 0
        checkpoint = counters.step % config.train.checkpoint_every == 0 or last
        # A window ends with a checkpoint, because what it sums up would be missing after a resume.
        log = counters.step % config.train.log_every == 0 or checkpoint
        if log or checkpoint:
            for line in (line for rank in ranks.gather(skipped_here) for line in rank):
                skipped.write({"step": counters.step} | line)
            skipped_here = []
        if log:
            line = asdict(counters) | window.summary(ranks, peak)
            line |= {
                "lr": config.optim.lr * factor,
                "grad_norm": grad_norm if finite else None,
                "shrunk": int(*ranks.sum([loader.shrunk()])),
            }
            metrics.write(line)
            trackers.log(line)
            progress.update(line)
            window = Window()
            check_bad_share(loader, ranks, config)
        if checkpoint:
            check_weights(engine, counters.step)
            state = {
                "counters": asdict(counters),
                "config": plain_config(config),
                "scaler": engine.scaler.state_dict(),
                "data": merge_states(ranks.gather(loader.state_dict())),
            }
            checkpointer.save(counters.step, engine, state)
        checkpointer.poll()
        profiler.step()
        if leave and getattr(counters, field) < length:
            profiler.stop()
            checkpointer.wait()
            progress.say(f"Asked to end: saved step {counters.step}; the same command goes on from there")
            return None
    progress.stop()
    profiler.stop()
    checkpointer.wait()
    return engine.whole().eval()


def take_batches(
    batches: Iterator[LoadedBatch], number: int, model: ViTConfig, objective: Objective, window: Window
) -> Taken:
    """The next `number` batches of this rank, counted in `window` too."""
    taken = Taken()
    for _ in range(number):
        before = time.perf_counter()
        loaded = next(batches)
        wait = time.perf_counter() - before
        batch = loaded.batch
        assert batch is not None
        # A backward pass costs two forward passes; teachers have none.
        flops = 3 * batch_flops(model, batch)
        for teacher, view in zip(objective.teachers, loaded.teachers, strict=True):
            flops += batch_flops(teacher.config, view)
        stats = batch.stats()
        window.add_batch(stats, flops, wait)
        taken.batches.append(batch)
        taken.views.append(loaded.teachers)
        taken.stats += stats
        taken.skipped += loaded.skipped
        taken.flops += flops
    return taken


def batch_flops(model: ViTConfig, batch: PackedBatch) -> int:
    """FLOPs of one forward pass."""
    pairs = zip(batch.image_lengths().tolist(), batch.patch_sizes.tolist(), strict=True)
    return sum(model.flops(length, patch_size) for length, patch_size in pairs)
