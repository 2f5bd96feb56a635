"""Signals that ask a run to end, and waits that it notices."""

import signal
from pathlib import Path

import pytest
import torch

from packvit.common.ranks import Ranks
from packvit.data import DataConfig, DataError, DataPlan, TrainLoader
from packvit.packing import PackingConfig, ViewsConfig
from packvit.train.watch import patience, preempt
from packvit.train.watch.patience import Interrupted, Patience
from packvit.train.watch.preempt import Preemption, catch_signals


def test_the_first_signal_asks_and_only_a_second_ctrl_c_leaves(monkeypatch):
    """Signals within a second are one that was sent twice, by a terminal and by torchrun."""
    now = 100.0
    monkeypatch.setattr(preempt.time, "monotonic", lambda: now)
    preemption = Preemption()
    assert not preemption.asked
    for number, at in ((signal.SIGINT, 100.0), (signal.SIGINT, 100.9), (signal.SIGTERM, 105.0)):
        now = at
        preemption.ask(number)
        assert preemption.asked
        assert preemption.by == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        preemption.ask(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_caught_within_the_context_alone(number):
    before = signal.getsignal(number)
    with catch_signals() as preemption:
        signal.raise_signal(number)
        assert preemption.by == number
    assert signal.getsignal(number) is before


def test_a_wait_is_said_once_a_batch_and_ends(digits_set, capsys, monkeypatch):
    data = DataConfig((str(digits_set / "train"),), streams=4, workers=2)
    loader = TrainLoader(DataPlan(data, ViewsConfig(), PackingConfig()), rank=1, world_size=2)
    preemption = Preemption()
    watch = Patience(loader, Ranks(1, 2, torch.device("cpu")), preemption, timeout=10)
    monkeypatch.setattr(patience, "SHARED", Path("/"))
    for waited in (1, 59, 61, 62, 500):
        watch(waited)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "rank 1 has waited 61 s for a batch of data stream 1 from one of its 2 workers" in said
    assert "/ has" in said
    loader.start += 2
    watch(70)
    assert "data stream 3" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"has waited 541 s .*: train.timeout is over"):
        watch(541)
    preemption.ask(signal.SIGTERM)
    with pytest.raises(Interrupted):
        watch(1)
