"""A flat batch is the batch, in one buffer."""

import pickle
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

from packvit.packing import FlatBatch, PackedBatch


def same(one: PackedBatch, two: PackedBatch) -> None:
    for f in fields(PackedBatch):
        a, b = getattr(one, f.name), getattr(two, f.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        elif isinstance(a, dict):
            assert a.keys() == b.keys()
            assert all(a[p].dtype == b[p].dtype and torch.equal(a[p], b[p]) for p in a)
        else:
            assert a == b


@pytest.mark.parametrize("label", [3, None])
def test_unpacking_gives_the_batch_that_was_packed(cut_image, label):
    rng = np.random.default_rng(0)
    sizes = [(16, 24, 8), (15, 5, 5), (12, 12, 3)]
    images = [
        cut_image(rng.integers(0, 256, (h, w, 3), np.uint8), p, label=label, key=f"k{p}") for h, w, p in sizes
    ]
    batch = PackedBatch.build([images[:2], images[2:]], 24)
    flat = FlatBatch.pack(batch)
    same(batch, flat.unpack())
    same(batch, pickle.loads(pickle.dumps(flat)).unpack())
    memory = flat.buffer.data_ptr()
    assert all(
        memory <= tensor.data_ptr() < memory + len(flat.buffer) for tensor in flat.unpack().patches.values()
    )


def test_an_empty_batch_stays_one():
    batch = PackedBatch.build([[], []], 8)
    same(batch, FlatBatch.pack(batch).unpack())


PROGRAM = """
import resource, sys
from packvit.data import DataConfig, TrainLoader
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
sizes = tuple(range(4, 13))
views = ViewsConfig(patch_sizes=sizes, resolution=ResolutionConfig(16, 32, "uniform"))
packing = PackingConfig(seq_len=64, sequences=8, lookahead=16, balance=1)
batches = iter(TrainLoader(DataConfig((sys.argv[1],), workers=2, streams=2), views, packing, 0, 10))
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
