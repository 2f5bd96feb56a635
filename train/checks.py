"""Checks that stop a run in one sentence, before it does harm or wastes more time."""

import math
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from packvit.data import TrainLoader
from packvit.train.config import Config, changed_fields
from packvit.train.distributed import Ranks
from packvit.train.engine import Engine
from packvit.train.progress import Progress

# Fields of which only whether they are 0 must stay: the checkpoint has tensors for them.
SWITCHES = ("train.ema", "distill.feature_weight", "distill.token_weight")


def check_same_run(path: Path, saved: dict, config: Config, progress: Progress) -> None:
    """Refuse to resume what would be another run; name what else has changed.

    Raises:
        ValueError: `path` was saved with another seed, model, optimizer or number of teachers, or with or
            without a moving average or a match of features or tokens.
    """
    for name, (old, new) in changed_fields(saved, config).items():
        switched = name in SWITCHES and (old == 0) != (new == 0)
        fewer = name == "distill.teachers" and len(old) != len(new)
        if switched or fewer or name in ("seed", "optim.kind") or name.startswith("model."):
            raise ValueError(
                f"{path} was saved with {name}={old}, not {new}: resume with the same, or take another "
                "run_dir"
            )
        progress.say(f"Changed since {path.name}: {name} was {old}, is {new}")


def check_finite(nonfinite: int, step: int, config: Config) -> None:
    """Stop a run that learns nothing.

    Raises:
        ValueError: more than `train.max_nonfinite` steps in a row had a gradient that is not finite.
    """
    if nonfinite > config.train.max_nonfinite:
        raise ValueError(
            f"the gradient was not finite in {nonfinite} steps in a row, up to step {step}: lower optim.lr, "
            "raise optim.warmup or look at the data; the last checkpoint is good"
        )


def check_bad_share(loader: TrainLoader, ranks: Ranks, config: Config) -> None:
    """Stop a run that loses data.

    Raises:
        ValueError: more samples are bad than `data.max_bad_fraction` allows.
    """
    seen, bad = ranks.sum(loader.counts())
    share = config.data.max_bad_fraction
    # A few bad samples at the start say little about the share: what counts is beyond three deviations.
    if bad > share * seen + 3 * math.sqrt(share * (1 - share) * seen):
        raise ValueError(
            f"{bad:.0f} of {seen:.0f} samples could not be used, more than data.max_bad_fraction="
            f"{config.data.max_bad_fraction} allows: {config.run_dir / 'skipped.jsonl'} names them"
        )


def check_weights(engine: Engine, step: int) -> None:
    """Stop a run that has diverged, before its checkpoint would take the place of a good one.

    Raises:
        ValueError: a weight of any rank is not finite.
    """
    weights = [p.to_local() if isinstance(p, DTensor) else p for p in engine.student.parameters()]
    finite = torch.stack([weight.isfinite().all() for weight in weights]).all()
    (bad,) = engine.ranks.sum([not finite])
    if bad:
        raise ValueError(
            f"the run diverged: at step {step} its weights are not finite; no checkpoint of it was written. "
            "Lower optim.lr, raise optim.warmup, and go on from the last checkpoint"
        )
