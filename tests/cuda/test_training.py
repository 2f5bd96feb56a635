"""Training on a GPU: steps, fp16, checkpoints, and both ways of sharing with one rank; the same on a CPU."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from packvit.common.device import arithmetic
from packvit.common.ranks import Ranks
from packvit.data import LoadedBatch
from packvit.models import ViTConfig
from packvit.packing import PackedBatch
from packvit.train.config import Config, TrainConfig
from packvit.train.step.checkpoint import Checkpointer
from packvit.train.step.interface import StepBatches
from packvit.train.step.kept import CheckpointConfig, find_checkpoints
from packvit.train.step.optim import OptimConfig
from packvit.train.step.shard import replicate, shard
from packvit.train.step.step import Engine, train_step
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.start import make_module

pytestmark = pytest.mark.filterwarnings("ignore:::torch", "ignore:The .grad attribute")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])]
CONFIG = Config(
    model=ViTConfig(width=64, depth=2, heads=2, num_classes=3, patch_buffer=16),
    optim=OptimConfig(lr=3e-3, warmup=0),
    train=TrainConfig(precision="bf16", compile="off", ema=0.5),
)


@pytest.fixture
def step(cut_image) -> StepBatches:
    """A step of two batches whose images differ in brightness by class."""
    rng = np.random.default_rng(0)
    images = [
        cut_image(rng.integers(0, 80 * (label + 1), (32, 24, 3), np.uint8), p, label=label)
        for label, p in ((0, 8), (1, 4), (2, 8), (0, 4))
    ]
    batches = [PackedBatch.build([images[:2]], 64), PackedBatch.build([images[2:]], 64)]
    return StepBatches([LoadedBatch(batch, batch.facts()) for batch in batches], images=4)


def make_engine(device: str, **train: Any) -> tuple[Engine, Classification]:
    config = replace(CONFIG, train=replace(CONFIG.train, **train))
    task = Classification(config)
    target = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    return Engine(make_module(config, task), config.train, config.optim, Ranks(0, 1, target)), task


def losses_of(engine: Engine, task: Classification, step: StepBatches, numbers: range) -> list[float]:
    return [float(train_step(engine, task, step, number).losses.mean()) for number in numbers]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_loss_falls_as_on_a_cpu_in_float32(step, precision, device):
    expected = losses_of(*make_engine("cpu", precision="fp32"), step, range(12))
    got = losses_of(*make_engine(device, precision=precision), step, range(12))
    assert got[0] == pytest.approx(expected[0], rel=1e-2)
    # fp16 may leave out some steps while it looks for its scale.
    assert expected[-1] < expected[0] - 0.05
    assert got[-1] < got[0] - 0.05


@pytest.mark.parametrize("device", DEVICES)
def test_fp16_lowers_its_scale_where_gradients_overflow(step, device):
    engine, task = make_engine(device, precision="fp16")
    engine.scaler = torch.amp.GradScaler(device, init_scale=2.0**120)
    before = copy.deepcopy(engine.model)
    train_step(engine, task, step, 0)
    assert engine.scaler.get_scale() < 2.0**120
    for a, b in zip(engine.model.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_a_checkpoint_goes_on_where_it_was_saved(step, device, tmp_path):
    engine, task = make_engine(device)
    losses_of(engine, task, step, range(2))
    Checkpointer(tmp_path, CheckpointConfig(), engine.ranks, engine, {}).save(2)
    expected = losses_of(engine, task, step, range(2, 4))
    other, task = make_engine(device)
    Checkpointer(tmp_path, CheckpointConfig(), other.ranks, other, {}).load(find_checkpoints(tmp_path)[-1])
    # Attention's backward pass on a GPU adds up in any order.
    assert losses_of(other, task, step, range(2, 4)) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_steps_repeat_to_the_bit(step, device):
    weights = []
    for _ in range(2):
        with arithmetic("bf16", deterministic=True):
            engine, task = make_engine(device, deterministic=True)
            losses_of(engine, task, step, range(3))
        weights.append([parameter.detach().clone() for parameter in engine.model.parameters()])
    assert all(map(torch.equal, *weights))


@pytest.fixture
def one_rank(request):
    """A process group of this process alone, of the device's own kind."""
    device = request.getfixturevalue("device")
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.usefixtures("one_rank")
def test_sharing_with_one_rank_changes_no_gradient(step, parallel, device):
    alone, task = make_engine(device)
    expected_losses = task.backward(alone, step)
    shared, task = make_engine(device)
    if parallel == "ddp":
        shared.forward = replicate(shared.module)
    else:
        shard(shared.model, init_device_mesh(device, (1,)), "bf16")
    losses = task.backward(shared, step)
    torch.testing.assert_close(losses, expected_losses, atol=1e-2, rtol=1e-2)
    pairs = zip(alone.model.parameters(), shared.model.parameters(), strict=True)
    gradients = [(a.grad, b.grad.full_tensor() if isinstance(b.grad, DTensor) else b.grad) for a, b in pairs]
    largest = max(float(expected.norm()) for expected, _ in gradients if expected is not None)
    for expected, got in gradients:
        assert expected is not None
        assert got is not None
        assert float((got - expected).norm()) <= 2e-2 * (float(expected.norm()) + 1e-2 * largest)
