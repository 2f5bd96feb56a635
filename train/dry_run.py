"""`packvit train RECIPE --dry-run`: a few real steps in a folder that is removed, and what they predict."""

import os
import shutil
import statistics
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

from packvit.common.display import Display
from packvit.common.json_lines import read_json_lines
from packvit.train.config import Config
from packvit.train.run import run
from packvit.train.tokens import mean_tokens

STEPS, SETTLED = 8, 3  # steps that are run, and the first of them that count


def dry_run(config: Config) -> None:
    """Run STEPS steps of a run without checkpoints or evaluation, and print what the whole run would cost.

    Raises:
        ValueError: see `run`.
    """
    folder = config.folder.with_name(f".{config.folder.name}.dry-run")
    train = replace(
        config.train, steps=STEPS, images=0, tokens=0, gflops=0, log_every=1, checkpoint_every=10**9
    )
    trial = replace(
        config,
        run_dir=folder,
        data=replace(config.data, val_shards=()),
        eval=replace(config.eval, every=0, patience=0),
        train=replace(train, trackers=(), profile=0, resume_from=""),
    )
    try:
        run(trial, measure=False)
        lines = read_json_lines(folder / "metrics.jsonl")
    finally:
        if int(os.environ.get("RANK", "0")) == 0:
            shutil.rmtree(folder, ignore_errors=True)
    if int(os.environ.get("RANK", "0")) == 0:
        Display().table(
            f"Measured over {len(lines) - SETTLED} steps", ["what", "value"], foretell(config, lines)
        )


def foretell(config: Config, lines: list[dict[str, Any]]) -> list[list[str]]:
    """(what, value) pairs about a run whose first steps wrote these lines of metrics.jsonl, one a step.

    Packers begin with long views, so the first steps do not hold as many images as later ones. The number of
    images is therefore computed from `mean_tokens`; seconds and padding are measured in the steps.
    """
    settled = lines[SETTLED:]
    tokens = statistics.mean(b["tokens_seen"] - a["tokens_seen"] for a, b in pairwise(lines[SETTLED - 1 :]))
    gflops = statistics.mean(b["gflops_seen"] - a["gflops_seen"] for a, b in pairwise(lines[SETTLED - 1 :]))
    # Those that took least: others wait for what happens once, such as compiling.
    seconds = tokens / max(line["tokens_per_s"] for line in settled)
    images = tokens / mean_tokens(config)
    length = config.train.length
    each = {"step": 1, "images_seen": images, "tokens_seen": tokens, "gflops_seen": gflops}[length.unit]
    steps = length.total / each
    return [
        ["tokens an image", f"{mean_tokens(config):.1f}"],
        ["images a step", f"{images:,.0f}"],
        ["padding", f"{statistics.mean(line['padding_fraction'] for line in settled):.2%}"],
        ["GFLOPs a step", f"{gflops:,.0f}"],
        ["peak memory of a rank", f"{lines[-1]['memory_gb']:.2f} GB"],
        ["seconds a step", f"{seconds:.3f}"],
        ["images a second", f"{images / seconds:,.0f}"],
        ["steps of the run", f"{steps:,.0f}"],
        ["time of the run on this device", f"{timedelta(seconds=round(steps * seconds))}"],
    ]
