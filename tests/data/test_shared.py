"""Room in /dev/shm for the batches of workers, looked at before they start."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

from packvit.cli import dispatch
from packvit.data import DataConfig, DataPlan, Stream, check_shared
from packvit.data.streams import shared
from packvit.data.streams.shared import batch_bytes
from packvit.packing import CurriculumConfig, DropConfig, Flat, PackingConfig, ResolutionConfig, ViewsConfig

VIEWS = ViewsConfig(patch_sizes=(4, 8, 16), resolution=ResolutionConfig(24, 48, "uniform"))
LATER = replace(VIEWS, patch_weights=(1, 0, 0), curriculum=CurriculumConfig(1, 1, patch_weights=(0, 0, 1)))


@pytest.fixture
def plan(digits_set) -> DataPlan:
    data = DataConfig((str(digits_set / "train"),), workers=2, streams=4)
    return DataPlan(data, VIEWS, PackingConfig(seq_len=64, sequences=4, balance=2))


@pytest.fixture
def room(monkeypatch):
    """room(total, free): of /dev/shm in bytes."""

    def make(total: float, free: float) -> None:
        found = SimpleNamespace(f_frsize=1, f_blocks=int(total), f_bfree=int(free), f_bavail=int(free))
        monkeypatch.setattr(os, "statvfs", lambda path: found)

    return make


@pytest.mark.parametrize(
    ("views", "teachers"),
    [
        (VIEWS, ()),
        (replace(VIEWS, drop=DropConfig("constant", 0.5)), ()),
        (VIEWS, ((4, 32), (16, 64))),
    ],
)
def test_the_size_of_a_batch_is_known_before_there_is_one(views, teachers, plan):
    plan = replace(plan, views=views, teachers=teachers)
    stream = Stream(plan, 0)
    sizes = [Flat.pack(stream.next_batch()).buffer.nbytes for _ in range(30)]
    assert batch_bytes(plan) == pytest.approx(sum(sizes) / len(sizes), rel=0.3)


def test_what_views_become_counts(plan):
    assert batch_bytes(replace(plan, views=LATER)) > 10 * batch_bytes(
        replace(plan, views=replace(LATER, curriculum=CurriculumConfig()))
    )


def test_too_little_memory_is_refused_and_a_little_is_said(plan, room, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    size = batch_bytes(plan)
    batches = 2 * (2 * 3 + 2 + 5)
    room(batches * size + 1, batches * size + 1)
    assert check_shared(plan, 2, 5) == ""
    room(1e12, batches * size - 1)
    assert f"up to {batches} batches of about {size / 1e6:.1f} MB" in check_shared(plan, 2, 5)
    room(batches * size / 2.1, 1000)
    with pytest.raises(
        ValueError, match=r"--shm-size=\d+m, or --ipc=host\), or use fewer data.workers than 2"
    ):
        check_shared(plan, 2, 5)


def test_no_worker_needs_no_memory(plan, room):
    room(0, 0)
    assert check_shared(replace(plan, data=replace(plan.data, workers=0)), 1, 1) == ""


def test_there_may_be_no_such_folder(plan, monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "SHARED", tmp_path / "none")
    assert check_shared(plan, 1, 1) == ""


def test_a_run_refuses_at_start(run_flags, tmp_path, room, capsys):
    flags = run_flags(tmp_path, train__steps=1)
    room(1000, 1000)
    assert dispatch(["train", *flags]) == 2
    assert "wait in /dev/shm, which has 0 of 0 MB free" in capsys.readouterr().err
