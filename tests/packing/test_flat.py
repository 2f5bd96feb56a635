"""A flat value is the value, in one buffer."""

import pickle
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from packvit.packing import Flat, Mixed, PackedBatch, Ragged, send


def same(one: Any, two: Any) -> None:
    """Refuse values that differ anywhere, in a type or a dtype too."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    elif isinstance(one, PackedBatch):
        for f in fields(PackedBatch):
            same(getattr(one, f.name), getattr(two, f.name))
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for name in one:
            same(one[name], two[name])
    elif isinstance(one, tuple):
        for a, b in zip(one, two, strict=True):
            same(a, b)
    else:
        assert one == two


@pytest.mark.parametrize("targets", [{"label": 3, "text": "three"}, {"label": None}])
def test_unpacking_gives_the_batch_that_was_packed(cut_image, targets):
    rng = np.random.default_rng(0)
    sizes = [(16, 24, 8), (15, 5, 5), (12, 12, 3)]
    images = [
        cut_image(rng.integers(0, 256, (h, w, 3), np.uint8), p, key=f"k{p}", **targets) for h, w, p in sizes
    ]
    batch = PackedBatch.build([images[:2], images[2:]], 24)
    assert list(batch.targets) == [name for name, value in targets.items() if value is not None]
    flat = Flat.pack(batch)
    same(batch, flat.unpack())
    same(batch, pickle.loads(pickle.dumps(flat)).unpack())
    memory = flat.buffer.data_ptr()
    assert all(
        memory <= tensor.data_ptr() < memory + len(flat.buffer) for tensor in flat.unpack().patches.values()
    )


def test_targets_of_every_kind_and_values_around_a_batch_are_flattened(cut_image):
    batch = PackedBatch.build([[cut_image(np.zeros((8, 8, 3), np.uint8), 4)]], 4)
    boxes = Ragged.join([np.ones((2, 4), np.float32)], np.empty((0, 4), np.float32))
    mixed = Mixed(torch.tensor([1]), torch.tensor([2]), torch.tensor([0.5]))
    batch = replace(batch, targets={"label": mixed, "boxes": boxes, "text": ["one"]})
    value = {"batch": batch, "teachers": (batch, batch), "step": 3, "none": None}
    flat = Flat.pack(value)
    same(value, flat.unpack())
    same(value, pickle.loads(pickle.dumps(flat)).unpack())
    memory = flat.buffer.data_ptr()
    inner = flat.unpack()["batch"].targets
    tensors = [*inner["label"], *inner["boxes"]]
    assert all(memory <= tensor.data_ptr() < memory + len(flat.buffer) for tensor in tensors)


class Asked:
    """Stands for a tensor, and answers how it was asked to move."""

    def to(self, device: str, non_blocking: bool) -> bool:
        return non_blocking


def test_a_copy_to_the_host_is_waited_for():
    """It would be read before it has arrived; one to a device is only used there, and in order."""
    asked: Any = Asked()
    assert send(asked, "cuda") is True
    assert send(asked, "cpu") is False


def test_an_empty_batch_stays_one():
    batch = PackedBatch.build([[], []], 8)
    same(batch, Flat.pack(batch).unpack())


PROGRAM = """
import resource, sys
from packvit.data import DataConfig, DataPlan, TrainLoader
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
sizes = tuple(range(4, 13))
views = ViewsConfig(patch_sizes=sizes, resolution=ResolutionConfig(16, 32, "uniform"))
packing = PackingConfig(seq_len=64, sequences=8, lookahead=16, balance=1)
data = DataConfig((sys.argv[1],), workers=2, streams=2)
plan = DataPlan(data, views, packing, targets={"label": data.class_target(10)})
batches = iter(TrainLoader(plan))
held = [next(batches).batch for _ in range(24)]
assert sum(len(batch.patches) for batch in held) > 150
"""


def test_many_batches_need_few_file_descriptors(digits_set):
    """24 batches of nine patch sizes, held at once, under a limit of 80 open files."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(digits_set / "train")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


def is_shared(item: Any) -> bool:
    flat = Flat.pack({"x": item, "y": item[:0]})
    same({"x": item, "y": item[:0]}, flat.unpack())
    return flat.buffer.is_shared()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_packs_into_shared_memory(workers):
    items: Any = [torch.arange(1000), torch.arange(0)]
    loader = DataLoader(items, batch_size=None, num_workers=workers, collate_fn=is_shared)
    assert list(loader) == [workers > 0] * len(items)
