"""The order in which a run is set up, and steps that no rank has an image for."""

import multiprocessing
from dataclasses import replace

import pytest
import torch
import tyro
from safetensors.torch import load_file

from packvit.cli.commands import dispatch
from packvit.common.display import Display
from packvit.common.json_lines import read_json_lines
from packvit.common.ranks import find_ranks
from packvit.packing import PackedBatch
from packvit.train import loop
from packvit.train.config import Config
from packvit.train.recipes.find import find_recipe
from packvit.train.tasks.make import make_task
from packvit.train.watch.window import Taken


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


def test_a_step_without_images_changes_nothing(run_flags, tmp_path, monkeypatch):
    """Momentum and weight decay would move the weights all the same."""
    steps, take = iter(range(1, 100)), loop.take_batches

    def take_no_images(*arguments) -> Taken:
        taken = take(*arguments)
        if next(steps) in (3, 4):
            empty = PackedBatch.build([[]], 64)
            batches = [replace(loaded, batch=empty, facts=empty.facts()) for loaded in taken.batches]
            return Taken(batches, empty.stats())
        return taken

    monkeypatch.setattr(loop, "take_batches", take_no_images)
    flags = run_flags(tmp_path, data__workers=0, train__checkpoint_every=1, train__keep_checkpoints=9)
    assert dispatch(["train", *flags, "--train.ema", "0.9"]) == 0
    weights = [load_file(tmp_path / f"checkpoints/step-{n:08d}/model.safetensors") for n in range(2, 6)]
    same = [[torch.equal(tensor, two[name]) for name, tensor in weights[0].items()] for two in weights[1:]]
    assert all(same[0])
    assert all(same[1])
    assert not any(same[2])
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert [line["loss"] is None for line in lines] == [False, False, True, True, False, False]
    assert lines[-1]["nonfinite_steps"] == 0
