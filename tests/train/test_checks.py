"""A run that loses data stops, however much good data came before."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from packvit.common.ranks import Ranks
from packvit.data import DataConfig
from packvit.train.config import Config
from packvit.train.watch.checks import RECENT, BadShare

said: list[str] = []
ALONE = Ranks(0, 1, torch.device("cpu"))


def checked(counts: list[tuple[int, int]], share: float = 0.05) -> int:
    """How many of these counts of (samples, bad samples) pass one after the other; the first is the start."""
    loader: Any = SimpleNamespace(counts=lambda: counts[0])
    check = BadShare(Config(data=DataConfig(max_bad_fraction=share)), ALONE, loader)
    for number, now in enumerate(counts[1:]):
        loader.counts = lambda now=now: now
        try:
            check.check()
        except ValueError as error:
            said.append(str(error))
            return number
    return len(counts) - 1


def test_bad_samples_count_against_the_newest_ones():
    good = [(n, 0) for n in range(0, 480_000, 1000)]
    bad = [(479_000 + n, n) for n in range(500, 5000, 500)]
    # Of the last 10,000 or so, 5 % may be bad, and a little more by chance.
    assert checked(good + bad) == len(good)
    assert "1000 of the last 10000 samples could not be used" in said[-1]
    assert "max_bad_fraction=0.05" in said[-1]
    assert checked(good + [(479_000 + n, n // 25) for n in range(0, 100_000, 1000)]) == len(good) + 99


def test_a_few_bad_samples_at_the_start_stop_nothing():
    assert checked([(0, 0), (10, 1), (100, 8), (RECENT, 500)]) == 3
    assert checked([(0, 0), (10, 5)]) == 0


def test_a_resumed_run_counts_from_its_start():
    """What was lost before has stopped the run then, or was forgiven."""
    assert checked([(1000, 900), (11_000, 1_390), (30_000, 2_300)]) == 2


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_may_be_bad(share: float):
    assert checked([(0, 0), (100, 0), (200, 1)], share) == (2 if share else 1)
