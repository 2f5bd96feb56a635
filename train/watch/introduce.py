"""What a run prints about itself before its first step."""

import torch

from packvit.common.device import choose_precision
from packvit.common.display import Display
from packvit.data import CLASSES, count_samples, named_folders, redact
from packvit.train.config import Config
from packvit.train.loop import Training
from packvit.train.tokens import mean_tokens


def introduce(training: Training, display: Display) -> None:
    """A few lines: what is trained, its weights, the device, and the images of a step and of the run."""
    config, ranks = training.config, training.ranks
    first, *others = training.engine.module.describe()
    display.say(f"{first}; patch sizes {' '.join(map(str, config.views.patch_sizes))}")
    for line in others:
        display.say(line)
    start = config.train.init or (config.distill.teachers[0] if config.distill.init else "")
    if training.counters.step:
        weights = f"those of step {training.counters.step}"
    else:
        weights = f"from {start}" if start else f"new, seed {config.seed}"
    display.say(f"Weights: {weights}")
    name = f"CPU, threads: {torch.get_num_threads()}"
    if ranks.device.type == "cuda":
        name = torch.cuda.get_device_name(ranks.device)
    display.say(
        f"Device: {ranks.world_size} x {name}, {choose_precision(config.train.precision, ranks.device)}, "
        f"workers: {config.data.workers}"
    )
    display.say(describe_steps(training))
    if "label" in training.task.targets:
        warn_of_classes(config, display)


def warn_of_classes(config: Config, display: Display) -> None:
    """Say if the training set names more classes than the model has."""
    number = config.model.num_classes
    for folder, names in named_folders(config.data.shards, config.data.fetch):
        if len(names) > number:
            display.say(
                f"warning: model.num_classes={number}, but {redact(folder)}/{CLASSES} names {len(names)} "
                f"classes: samples with a label above {number - 1} cannot be used"
            )


def describe_steps(training: Training) -> str:
    """Slots and images of a step, and the epochs of the whole run if the number of samples is known."""
    config = training.config
    sequences = training.ranks.world_size * config.train.accumulate * config.packing.sequences
    slots = sequences * config.packing.seq_len
    tokens = mean_tokens(config)
    held = slots / tokens
    if config.packing.sequence_images is not None:
        held = min(held, sequences * config.packing.sequence_images)
    text = f"Step: {slots:,} tokens, about {held:,.0f} images of {tokens:.0f} tokens"
    length = training.length
    totals = {"step": length.total * held, "images_seen": length.total}
    images = totals.get(length.unit, length.total / tokens if length.unit == "tokens_seen" else None)
    if images is not None:
        text += f"; the run: about {images:,.0f} images"
        samples = count_samples(training.loader.plan.shards.paths)
        if samples:
            shown = training.loader.plan.shown
            text += f", {images / samples / shown:,.1f} epochs of {samples:,}"
    return text
