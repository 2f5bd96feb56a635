"""Checks that stop a run with one sentence, before it does harm or wastes more time."""

import math
import re
from collections import Counter, deque
from pathlib import Path
from typing import Any

import torch

from packvit.common.display import Display
from packvit.common.json_lines import read_json_lines
from packvit.common.ranks import Ranks
from packvit.data import SampleCounts, TrainLoader
from packvit.train.config import Config, changed_fields, must_stay, plain_config, resume_rules
from packvit.train.step.muon import local
from packvit.train.step.step import Engine

RECENT = 10_000  # samples


class SameRun:
    """The part of a checkpoint that identifies its run: the configuration, and the number of ranks."""

    def __init__(self, config: Config, display: Display, world_size: int = 1) -> None:
        self.config = config
        self.display = display
        self.ranks = world_size

    def state_dict(self) -> dict[str, Any]:
        """The configuration as plain values, and the number of ranks."""
        return plain_config(self.config) | {"ranks": self.ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to resume a run that would become another one; report other changes.

        Raises:
            ValueError: a field that must not change has changed, such as the seed, model or optimizer.
        """
        rules, changed = resume_rules(self.config), changed_fields(state, self.config)
        for name, (old, new) in changed.items():
            if must_stay(rules[name], old, new):
                raise ValueError(
                    f"the run in {self.config.folder} was saved with {name}={old}, not {new}: resume with "
                    "the same, or use another run_dir, with --train.init for the weights of a checkpoint"
                )
        for name, (old, new) in changed.items():
            self.display.say(f"Changed since the checkpoint: {name} was {old}, is {new}")
        if "ranks" in state:
            self._compare_steps(state)

    def _compare_steps(self, state: dict[str, Any]) -> None:
        """Say how large a step is now, if not as large as before: the learning rate was chosen for that."""
        packing, accumulate = self.config.packing, self.config.train.accumulate
        old_ranks, old_accumulate = state["ranks"], state["train"]["accumulate"]
        before = old_ranks * old_accumulate * state["packing"]["sequences"]
        now = self.ranks * accumulate * packing.sequences
        if before == now:
            return
        sequences = self.ranks * packing.sequences
        keeps = max(1, round(before / sequences))
        advice = "keeps it" if keeps * sequences == before else "comes nearest to it"
        self.display.say(
            f"A step was {before} sequences ({old_accumulate} batches of {old_ranks} ranks), now it is {now} "
            f"({accumulate} of {self.ranks}), with {now / before:.0%} of the images: "
            f"--train.accumulate {keeps} {advice}"
        )


def check_finite(nonfinite: int, step: int, config: Config) -> None:
    """Stop a run that learns nothing.

    Args:
        nonfinite: number of consecutive steps, up to `step`, that changed nothing.

    Raises:
        ValueError: more than `train.max_nonfinite` steps in a row had a gradient that is not finite.
    """
    if nonfinite > config.train.max_nonfinite:
        raise ValueError(
            f"the gradient was not finite in {nonfinite} steps in a row, up to step {step}: lower optim.lr, "
            "raise optim.warmup or look at the data; the last checkpoint is good"
        )


class BadShare:
    """Stops a run that loses data: the share of bad samples among the newest, whatever came before them."""

    def __init__(self, config: Config, ranks: Ranks, loader: TrainLoader) -> None:
        self.config, self.ranks, self.loader = config, ranks, loader
        self.past = deque([self._counts()])  # at the start and at earlier checks

    def _counts(self) -> SampleCounts:
        """What became of the samples that all ranks have read so far."""
        return SampleCounts(*self.ranks.sum(self.loader.counts()))

    def check(self) -> None:
        """Check the last RECENT samples of all ranks, or those since the run started or was resumed.

        Raises:
            ValueError: more of them are bad than `data.max_bad_fraction` allows.
        """
        counts = self._counts()
        while len(self.past) > 1 and counts.read - self.past[1].read >= RECENT:
            self.past.popleft()
        recent = counts.since(self.past[0])
        self.past.append(counts)
        share = self.config.data.max_bad_fraction
        # Those that were lost when the decoded ones were read come on top of those lost in decoding.
        lost_before = recent.unreadable * min(1, recent.decoded / max(1, recent.read))
        if too_many(recent.unreadable, recent.read, share) or too_many(
            recent.undecodable + lost_before, recent.decoded, share
        ):
            reason = commonest_reason(self.config.folder)
            raise ValueError(
                f"of the last {recent.read:.0f} samples, {recent.unreadable:.0f} could not be used when they "
                f"were read, and {recent.undecodable:.0f} of the {recent.decoded:.0f} decoded so far, more "
                f"than data.max_bad_fraction={share} allows{reason}; "
                f"{self.config.folder / 'skipped.jsonl'} names all; the last checkpoint is good"
            )


def too_many(bad: float, seen: float, share: float) -> bool:
    """Whether more than `share` is bad; a few bad samples say little: what counts is beyond three
    deviations."""
    return bad > share * seen + 3 * math.sqrt(share * (1 - share) * seen)


def commonest_reason(run_dir: Path) -> str:
    """The commonest reason of skipped.jsonl with one of its samples; empty if it has none.

    Reasons that differ only in numbers and quoted names count as the same.
    """
    try:
        lines = read_json_lines(run_dir / "skipped.jsonl")
    except (OSError, ValueError):
        return ""
    kinds = Counter(_kind(line["reason"]) for line in lines)
    if not kinds:
        return ""
    (kind, number), *_ = kinds.most_common(1)
    example = next(line for line in reversed(lines) if _kind(line["reason"]) == kind)
    where = f"{example['shard']}" + (f", sample {example['key']!r}" if example.get("key") else "")
    return f", {number} of them because, as of {where}: {example['reason']}"


def _kind(reason: str) -> str:
    return re.sub(r"'[^']*'|\d+", "#", reason)


def check_weights(engine: Engine, step: int) -> None:
    """Stop a run that has diverged, before its checkpoint replaces a good one.

    Raises:
        ValueError: a weight of any rank is not finite.
    """
    weights = [local(parameter) for parameter in engine.module.parameters()]
    finite = torch.stack([weight.isfinite().all() for weight in weights]).all()
    (bad,) = engine.ranks.sum([not finite])
    if bad:
        raise ValueError(
            f"the run diverged: at step {step} its weights are not finite; no checkpoint of it was written. "
            "Lower optim.lr, raise optim.warmup, and resume from the last checkpoint"
        )
