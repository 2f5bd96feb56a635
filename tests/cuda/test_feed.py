"""Batches that are fed to a GPU while it computes are those that were sent; on a CPU they are too."""

import pytest
import torch

from packvit.data.streams.feed import feed
from packvit.packing import Flat

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])]


@pytest.mark.parametrize("device", DEVICES)
def test_fifty_batches_arrive_whole_while_the_device_is_busy(device):
    """Kernels of one batch still run when the memory of the one before is free for the next copy."""
    target = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    sizes = [1000 + 37 * (number % 7) for number in range(50)]
    values = (Flat.pack({"x": torch.full((size, 64), number)}) for number, size in enumerate(sizes))
    noise = torch.randn(512, 512, device=target)
    sums = []
    for value in feed(values, target):
        assert value["x"].device == target
        for _ in range(20 if device == "cuda" else 0):
            noise = noise @ noise / 23
        sums.append((value["x"].sum(), value["x"].min(), value["x"].max()))
    found = [[int(number) for number in each] for each in sums]
    assert found == [[64 * size * number, number, number] for number, size in enumerate(sizes)]
