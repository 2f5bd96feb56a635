"""The training loop, read from top to bottom: batches, schedule, forward, loss, step, log, save.

The gradient of a step is the mean over all images of the step, over all ranks and accumulated batches.
All batches of a step are therefore taken before the first forward pass.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from packvit.data import LoadedBatch, TrainLoader, merge_states
from packvit.models import PackedViT
from packvit.packing import derive_seed
from packvit.train.checkpoint import find_checkpoints, load_checkpoint, save_checkpoint
from packvit.train.config import Config, save_config
from packvit.train.distributed import Ranks
from packvit.train.losses import classification_loss
from packvit.train.metrics import JsonLines, Window, peak_tflops
from packvit.train.optim import make_optimizer, update_ema
from packvit.train.progress import Progress
from packvit.train.report import draw_samples
from packvit.train.schedule import lr_factor

BAD_GRACE = 200  # samples; a few bad ones at the start of a run say little about the share


@dataclass
class Counters:
    """How far the run is, over all ranks."""

    step: int = 0
    images_seen: int = 0
    tokens_seen: int = 0


def train(config: Config, ranks: Ranks, progress: Progress) -> PackedViT:
    """Train up to `config.train.steps` and return the model to evaluate.

    Raises:
        ValueError: data or configuration cannot be used, too many samples are bad, or the loss is not finite.
    """
    # ---- Data, model, optimizer -----------------------------------------------------------------
    loader = TrainLoader(
        config.data,
        config.views,
        config.packing,
        config.seed,
        config.model.num_classes,
        ranks.rank,
        ranks.world_size,
        pin_memory=ranks.device.type == "cuda",
    )
    model = make_model(config).to(ranks.device)
    average = copy.deepcopy(model).requires_grad_(False) if config.train.ema else None
    optimizer = make_optimizer(model, config.optim)
    autocast = make_autocast(config.train.precision, ranks.device)
    peak = peak_tflops(ranks.device, config.train.peak_tflops)
    counters = Counters()

    # ---- Resume ---------------------------------------------------------------------------------
    checkpoints = config.run_dir / "checkpoints"
    if found := find_checkpoints(checkpoints):
        saved = load_checkpoint(found[-1], model, average, optimizer)
        loader.load_state_dict(saved["data"])
        counters = Counters(**saved["counters"])
        progress.say(f"Resuming from {found[-1]}")
    ranks.barrier()  # nobody writes before all have read
    if ranks.is_main:
        save_config(config, config.run_dir / "config.yaml")
    metrics = JsonLines(config.run_dir / "metrics.jsonl", counters.step, write=ranks.is_main)
    skipped = JsonLines(config.run_dir / "skipped.jsonl", counters.step, write=ranks.is_main)

    # ---- Steps ----------------------------------------------------------------------------------
    forward: nn.Module = model
    no_sync: Callable[[], AbstractContextManager] = nullcontext
    if ranks.world_size > 1:
        forward = parallel = DistributedDataParallel(model)
        no_sync = parallel.no_sync
    model.train()
    window = Window()
    batches = iter(loader) if counters.step < config.train.steps else iter(())
    progress.start(counters.step, config.train.steps)
    while counters.step < config.train.steps:
        loaded = take_batches(batches, config.train.accumulate, model, window)
        images, tokens = ranks.sum(count(loaded))
        if counters.step == 0 and ranks.is_main:
            first = loaded[0].batch
            assert first is not None
            progress.draw(partial(draw_samples, first, config.run_dir / "samples/step-0.png"))
        counters.step += 1
        counters.images_seen += int(images)
        counters.tokens_seen += int(tokens)

        lr = config.optim.lr * lr_factor(counters.step - 1, config.train.steps, config.optim)
        for group in optimizer.param_groups:
            group["lr"] = lr
        # What the forward pass draws depends on the step alone, so a resumed run draws the same.
        torch.manual_seed(derive_seed(config.seed, "step", counters.step, ranks.rank) % 2**63)
        for index, part in enumerate(loaded):
            assert part.batch is not None
            batch = part.batch.to(ranks.device)
            with no_sync() if index + 1 < len(loaded) else nullcontext():
                with autocast:
                    logits = forward(batch)
                assert batch.labels is not None
                loss = classification_loss(
                    logits, batch.labels, config.train.loss, config.train.label_smoothing
                )
                # DDP takes the mean over ranks, and the sum is what is wanted.
                (loss * (ranks.world_size / max(1, images))).backward()
            window.add_loss(loss)
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            update_ema(average.parameters(), model.parameters(), config.train.ema, counters.step - 1)

        named = [line for rank in ranks.gather(name_skipped(loaded)) for line in rank]
        for line in named:
            skipped.write({"step": counters.step} | line)
        last = counters.step == config.train.steps
        if counters.step % config.train.log_every == 0 or last:
            line = asdict(counters) | window.summary(ranks, peak)
            line |= {"lr": lr, "grad_norm": float(grad_norm)}
            metrics.write(line)
            progress.update(line)
            window = Window()
            check_health(line, loader, ranks, config, named)
        if counters.step % config.train.checkpoint_every == 0 or last:
            state = {
                "counters": asdict(counters),
                "data": merge_states(ranks.gather(loader.state_dict())),
            }
            save_checkpoint(
                checkpoints,
                counters.step,
                model,
                average,
                optimizer,
                state,
                ranks,
                config.train.keep_checkpoints,
            )
    progress.stop()
    return (average if average is not None else model).eval()


def make_model(config: Config) -> PackedViT:
    """The model as `config.seed` initialises it; leaves the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "model") % 2**63)
        return PackedViT(config.model)


def make_autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in `precision`; `auto` is bf16 on CUDA, fp32 elsewhere."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def take_batches(
    batches: Iterator[LoadedBatch], number: int, model: PackedViT, window: Window
) -> list[LoadedBatch]:
    """The next `number` batches of this rank, counted in `window`."""
    taken = []
    for _ in range(number):
        before = time.perf_counter()
        loaded = next(batches)
        wait = time.perf_counter() - before
        assert loaded.batch is not None
        lengths = loaded.batch.image_lengths().tolist()
        sizes = loaded.batch.patch_sizes.tolist()
        # A backward pass costs two forward passes.
        flops = 3 * sum(model.config.flops(n, p) for n, p in zip(lengths, sizes, strict=True))
        window.add_batch(loaded.batch.stats(), flops, wait)
        taken.append(loaded)
    return taken


def count(loaded: list[LoadedBatch]) -> tuple[int, int]:
    """Images and tokens of this rank in one step."""
    stats = [part.batch.stats() for part in loaded if part.batch is not None]
    return sum(s.images for s in stats), sum(s.tokens for s in stats)


def name_skipped(loaded: list[LoadedBatch]) -> list[dict]:
    """The samples that were left out of these batches."""
    return [line for part in loaded for line in part.skipped]


def check_health(line: dict, loader: TrainLoader, ranks: Ranks, config: Config, named: list[dict]) -> None:
    """Stop a run that learns nothing or loses data.

    Raises:
        ValueError: the loss is not finite, or more samples are bad than `data.max_bad_fraction` allows.
    """
    if not math.isfinite(line["loss"]):
        raise ValueError(
            f"the loss is {line['loss']} at step {line['step']}: lower optim.lr, or see the data"
        )
    seen, bad = ranks.sum(loader.counts())
    if bad > config.data.max_bad_fraction * max(seen, BAD_GRACE):
        raise ValueError(
            f"{bad:.0f} of {seen:.0f} samples could not be used, more than data.max_bad_fraction="
            f"{config.data.max_bad_fraction} allows: {config.run_dir / 'skipped.jsonl'} names them"
        )
