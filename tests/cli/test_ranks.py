"""What is wrong is said once by all ranks together, or at once by the rank that it concerns."""

import pytest

from packvit.cli import commands, dispatch
from packvit.cli import train as train_module
from packvit.data import DataError


@pytest.mark.parametrize(
    ("error", "rank", "waits"),
    [
        (ValueError("wrong on all"), "0", False),
        (ValueError("wrong on all"), "1", True),
        (DataError("wrong on one"), "0", False),
        (DataError("wrong on one"), "1", False),
    ],
)
def test_a_rank_waits_only_with_what_is_wrong_on_all(error, rank, waits, monkeypatch, capsys):
    slept: list[float] = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(commands.time, "sleep", slept.append)

    def fails(arguments) -> None:
        raise error

    monkeypatch.setattr(train_module, "main", fails)
    assert dispatch(["train", "digits"]) == 2
    assert slept == [commands.OTHERS_WAIT] * waits
    assert str(error) in capsys.readouterr().err
