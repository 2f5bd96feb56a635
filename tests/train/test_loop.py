"""The order in which a run is set up."""

import multiprocessing

import pytest
import torch
import tyro

from packvit.common.display import Display
from packvit.common.ranks import find_ranks
from packvit.train import loop
from packvit.train.config import Config
from packvit.train.recipes.find import find_recipe
from packvit.train.tasks.make import make_task


class Joined(Exception):
    """Stops the test where CUDA and the group would start."""


def test_workers_are_forked_before_cuda_and_the_group_start(run_flags, tmp_path, monkeypatch):
    def join(*_: object) -> None:
        assert len(multiprocessing.active_children()) == 2
        raise Joined

    monkeypatch.setattr(loop, "join_ranks", join)
    flags = run_flags(tmp_path / "run", data__workers=2)
    config = tyro.cli(Config, default=find_recipe(flags[0]), args=flags[1:])
    assert multiprocessing.active_children() == []
    assert not torch.distributed.is_initialized()
    with pytest.raises(Joined):
        loop.set_up(config, make_task(config), find_ranks("cpu"), Display(quiet=True))
