"""A run that loses data stops, however much good data came before."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from packvit.common.ranks import Ranks
from packvit.data import DataConfig, SampleCounts
from packvit.train.config import Config
from packvit.train.watch.checks import RECENT, BadShare

said: list[str] = []
ALONE = Ranks(0, 1, torch.device("cpu"))


Counts = tuple[int, ...]  # read, lost then, decoded, lost then


def checked(counts: list[Counts], share: float = 0.05) -> int:
    """How many of these counts pass one after the other; the first is the start."""
    loader: Any = SimpleNamespace(counts=lambda: SampleCounts(*counts[0]))
    check = BadShare(Config(data=DataConfig(max_bad_fraction=share)), ALONE, loader)
    for number, now in enumerate(counts[1:]):
        loader.counts = lambda now=now: SampleCounts(*now)
        try:
            check.check()
        except ValueError as error:
            said.append(str(error))
            return number
    return len(counts) - 1


def read(*counts: tuple[int, int]) -> list[Counts]:
    """Samples that are lost in reading only; all others are decoded at once."""
    return [(seen, bad, seen, 0) for seen, bad in counts]


def test_bad_samples_count_against_the_newest_ones():
    good = [(n, 0) for n in range(0, 480_000, 1000)]
    bad = [(479_000 + n, n) for n in range(500, 5000, 500)]
    # Of the last 10,000 or so, 5 % may be bad, and a little more by chance.
    assert checked(read(*good, *bad)) == len(good)
    assert "of the last 10000 samples, 1000 could not be used when they were read" in said[-1]
    assert "max_bad_fraction=0.05" in said[-1]
    later = [(479_000 + n, n // 25) for n in range(0, 100_000, 1000)]
    assert checked(read(*good, *later)) == len(good) + 99


def test_samples_that_wait_are_not_counted_as_good():
    """A short run has read many samples that are never decoded."""
    assert checked([(0, 0, 0, 0), (16_000, 0, 100, 4), (16_100, 0, 200, 40)]) == 1
    assert "and 40 of the 200 decoded so far" in said[-1]
    assert checked([(0, 0, 0, 0), (16_000, 700, 100, 4), (16_100, 704, 2000, 70)]) == 1  # 4.4 and 3.5 %
    assert checked([(0, 0, 0, 0), (16_000, 1200, 100, 0)]) == 0
    assert checked([(0, 0, 0, 0), (20, 2, 2000, 0)]) == 1  # more is decoded than read after a resume


def test_a_few_bad_samples_at_the_start_stop_nothing():
    assert checked(read((0, 0), (10, 1), (100, 8), (RECENT, 500))) == 3
    assert checked(read((0, 0), (10, 5))) == 0


def test_a_resumed_run_counts_from_its_start():
    """What was lost before has stopped the run then, or was forgiven."""
    assert checked(read((1000, 900), (11_000, 1_390), (30_000, 2_300))) == 2


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_may_be_bad(share: float):
    assert checked(read((0, 0), (100, 0), (200, 1)), share) == (2 if share else 1)
