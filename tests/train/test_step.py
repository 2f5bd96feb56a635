"""A step alone, without a loader or a folder: what it computes, what it leaves out, and losses of a whole
step."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from packvit.common.device import arithmetic
from packvit.common.ranks import Ranks
from packvit.data import LoadedBatch
from packvit.models import PackedViT, ViTConfig
from packvit.models.vit import PatchEmbed
from packvit.packing import PackedBatch
from packvit.train.config import Config, TrainConfig
from packvit.train.step.interface import StepBatches, TrainedModule
from packvit.train.step.optim import OptimConfig, freeze
from packvit.train.step.step import Engine, train_step
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.start import make_module
from packvit.train.tasks.task import Task

ALONE = Ranks(0, 1, torch.device("cpu"))
# Clips every step. AdamW divides a gradient by its own size: without some eps it would blow up the noise in
# one that is zero, such as that of the keys' bias.
OPTIM = OptimConfig(lr=1e-3, weight_decay=0.1, head_weight_decay=0.3, clip=0.1, eps=1e-4)
CONFIG = Config(
    model=ViTConfig(width=16, depth=2, heads=2, num_classes=3, registers=1),
    optim=OPTIM,
    train=TrainConfig(ema=0.5, precision="fp32"),
)


@pytest.fixture
def step(cut_image) -> StepBatches:
    """Two batches of one step, of three images and of one, with two patch sizes."""
    rng = np.random.default_rng(0)
    images = [
        cut_image(rng.integers(0, bright, (height, width, 3), np.uint8), p, label=label)
        for bright, height, width, p, label in (
            (40, 16, 8, 4, 0),
            (256, 8, 16, 8, 2),
            (90, 12, 12, 4, 1),
            (150, 16, 16, 8, 2),
        )
    ]
    first = PackedBatch.build([images[:2], images[2:3]], 16)
    second = PackedBatch.build([images[3:]], 16)
    return StepBatches([LoadedBatch(batch, batch.facts()) for batch in (first, second)], images=4)


def make_engine(task: Task, config: Config = CONFIG) -> Engine:
    module = make_module(config, task)
    assert module.model.head is not None
    torch.manual_seed(0)
    nn.init.normal_(module.model.head.weight, std=0.3)  # zeros would hide the body's gradient
    return Engine(module, config.train, config.optim, ALONE, config.seed)


def plain_optimizer(model: PackedViT) -> torch.optim.AdamW:
    """AdamW that decays what multiplies activations, and nothing else."""
    kernels = {m.weight for m in model.modules() if isinstance(m, nn.Linear | PatchEmbed)}
    head = {model.head.weight} if model.head is not None else set()
    rest = set(model.parameters()) - kernels
    groups = [
        {"params": [p for p in model.parameters() if p in some], "weight_decay": decay}
        for some, decay in (
            (kernels - head, OPTIM.weight_decay),
            (head, OPTIM.head_weight_decay),
            (rest, 0.0),
        )
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], OPTIM.lr, OPTIM.betas, OPTIM.eps)


def assert_same_weights(one: nn.Module, two: nn.Module, atol: float = 0.0) -> None:
    pairs = zip(one.named_parameters(), two.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other
        torch.testing.assert_close(a, b, atol=atol, rtol=0, msg=name)


def test_a_step_is_that_of_a_plain_loop(step):
    task = Classification(CONFIG)
    engine = make_engine(task)
    model = copy.deepcopy(engine.model)
    optimizer = plain_optimizer(model)
    for number, factor in enumerate((0.5, 1.0, 0.25)):
        before = copy.deepcopy(model)
        result = train_step(engine, task, step, number, factor)

        batches = [loaded.batch for loaded in step.batches]
        labels = torch.cat([batch.labels for batch in batches])
        losses = F.cross_entropy(torch.cat([model(batch) for batch in batches]), labels, reduction="none")
        optimizer.zero_grad()
        losses.mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
        for group in optimizer.param_groups:
            group["lr"] = OPTIM.lr * factor
        optimizer.step()

        assert norm > OPTIM.clip
        torch.testing.assert_close(result.grad_norm, norm, rtol=1e-5, atol=0)
        torch.testing.assert_close(result.losses, losses.detach())
        assert_same_weights(engine.model, model, atol=1e-6)
        pairs = zip(before.parameters(), model.parameters(), strict=True)
        assert all((a - b).abs().max() > 1e-5 for a, b in pairs)


class Broken(Classification):
    """The loss of one image is not finite."""

    factor = float("nan")

    def loss(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        losses = super().loss(logits, batch)
        return torch.cat([losses[:1] * self.factor, losses[1:]])


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_whose_loss_is_not_finite_changes_nothing(factor, precision, step):
    config = replace(CONFIG, train=replace(CONFIG.train, precision=precision))
    good, broken = Classification(config), Broken(config)
    broken.factor = factor
    engine = make_engine(good, config)
    before, average = copy.deepcopy(engine.model), copy.deepcopy(engine.average)
    scale = engine.scaler.get_scale()
    result = train_step(engine, broken, step, 0)
    assert not result.grad_norm.isfinite()
    assert result.losses.isfinite().tolist() == [False, True, True, False]
    assert_same_weights(engine.model, before)
    assert engine.average is not None
    assert average is not None
    assert_same_weights(engine.average, average)
    assert not any(value.any() for state in engine.optimizers[0].state.values() for value in state.values())
    assert all(p.grad is None for p in engine.module.parameters())
    assert (engine.scaler.get_scale() < scale) == (precision == "fp16")


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_left_out_keeps_every_bit_of_the_state(kind, precision, step):
    config = replace(CONFIG, train=replace(CONFIG.train, precision=precision))
    config = replace(config, optim=replace(OPTIM, kind=kind))
    good, broken = Classification(config), Broken(config)
    engine = make_engine(good, config)
    assert train_step(engine, good, step, 0).grad_norm.isfinite()
    before = [tensor.clone() for tensor in state_of(engine)]
    assert len(before) > 3 * len(list(engine.model.parameters()))
    assert not train_step(engine, broken, step, 1).grad_norm.isfinite()
    pairs = list(zip(before, state_of(engine), strict=True))
    assert all(torch.equal(one.view(torch.int32), two.view(torch.int32)) for one, two in pairs)
    assert train_step(engine, good, step, 2).grad_norm.isfinite()
    assert not any(torch.equal(one, two) for one, two in zip(before, state_of(engine), strict=True))


def state_of(engine: Engine) -> list[Tensor]:
    """Weights, average, moments and the numbers of steps."""
    assert engine.average is not None
    tensors: list[Tensor] = [*engine.model.parameters(), *engine.average.parameters()]
    for optimizer in engine.optimizers:
        for state in optimizer.state.values():
            tensors += state.values()
    return tensors


class Lengths:
    """A loss of the weights alone, which asks nothing of a batch."""

    def backward(self, engine: Engine, step: StepBatches) -> Tensor:
        losses = torch.stack([p.square().sum() for p in engine.model.parameters()])
        engine.backward(losses.sum(), step.images)
        return losses.detach()


class NoReading(TorchDispatchMode):
    """Refuses what makes the host wait for a device: to read a tensor, or sizes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
            torch.ops.aten.nonzero,
        ), f"the step reads a tensor by {func}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_does_not_wait_for_the_device(kind, precision, step):
    train = replace(CONFIG.train, precision=precision)
    config = replace(CONFIG, train=train, optim=replace(OPTIM, kind=kind))
    engine = make_engine(Classification(config), config)
    with NoReading():
        result = train_step(engine, Lengths(), step, 0)
    assert result.grad_norm.isfinite()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_cpu_gives_the_same_bits_with_and_without_deterministic_algorithms(kind, step):
    engines = []
    for deterministic in (False, True):
        train = replace(CONFIG.train, deterministic=deterministic, precision="tf32")
        config = replace(CONFIG, train=train, optim=replace(OPTIM, kind=kind))
        task = Classification(config)
        engines.append(make_engine(task, config))
        with arithmetic(train.precision, train.deterministic):
            train_step(engines[-1], task, step, 0)
    assert_same_weights(engines[0].model, engines[1].model)


def test_a_run_goes_on_after_a_step_that_was_left_out(step):
    good, broken = Classification(CONFIG), Broken(CONFIG)
    engine, other = make_engine(good), make_engine(good)
    assert not train_step(engine, broken, step, 0).grad_norm.isfinite()
    one, two = (train_step(each, good, step, 1) for each in (engine, other))
    assert one.grad_norm.isfinite()
    assert one.grad_norm == two.grad_norm
    assert_same_weights(engine.model, other.model)


class Embedder(TrainedModule):
    """A model without a head."""

    def forward(self, batch: PackedBatch) -> Tensor:
        return self.model.features(batch)


class HalfUsed(Classification):
    """The loss does not depend on the head."""

    def build(self, model: PackedViT) -> TrainedModule:
        return Embedder(model)

    def loss(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        return logits.square().sum(1)


def test_a_parameter_without_a_gradient_is_named(step):
    task = HalfUsed(CONFIG)
    with pytest.raises(AssertionError, match=r"does not depend on model\.head\.weight"):
        train_step(make_engine(task), task, step, 0)


def test_a_head_is_trained_on_a_frozen_model():
    model = PackedViT(CONFIG.model)
    with pytest.raises(ValueError, match="leaves no parameter to train"):
        freeze(model, ("body", "head."))
    freeze(model, ("body", "head."), [torch.nn.Linear(2, 2)])
    assert not any(parameter.requires_grad for parameter in model.parameters())


class MeanFeature:
    """A loss of the whole step: the squared norm of the mean of all images' features.

    All batches are embedded without a gradient, and then again, one after the other, with the gradient that
    the loss has for their features: no more than one batch's activations are kept.
    """

    def backward(self, engine: Engine, step: StepBatches) -> Tensor:
        batches = [loaded.to(engine.ranks.device).batch for loaded in step.batches]
        with torch.random.fork_rng(), torch.no_grad(), engine.autocast:
            features = torch.cat([engine.forward(batch) for batch in batches])  # [N, D]
        features.requires_grad_()
        loss = whole_loss(features)
        (wanted,) = torch.autograd.grad(loss, features)
        parts = wanted.split([batch.num_images for batch in batches])
        for number, (batch, part) in enumerate(zip(batches, parts, strict=True)):
            with engine.sharing(last=number + 1 == len(batches)):
                with engine.autocast:
                    again = engine.forward(batch)
                engine.backward((again * part).sum(), 1)
        return loss.detach().expand(len(features))


def whole_loss(features: Tensor) -> Tensor:
    return features.mean(0).square().sum()


def make_embedder() -> Engine:
    torch.manual_seed(0)
    model = PackedViT(replace(CONFIG.model, num_classes=0))
    assert isinstance(model.norm, nn.LayerNorm)
    nn.init.normal_(model.norm.bias)  # the mean of normalised features would be small
    return Engine(Embedder(model), CONFIG.train, OPTIM, ALONE)


def test_a_loss_that_sees_the_whole_step_has_the_gradient_of_the_direct_computation(step):
    engine = make_embedder()
    model = copy.deepcopy(engine.model)
    losses = MeanFeature().backward(engine, step)
    loss = whole_loss(torch.cat([model(loaded.batch) for loaded in step.batches]))
    loss.backward()
    torch.testing.assert_close(losses, loss.detach().expand(4))
    for (name, parameter), direct in zip(engine.model.named_parameters(), model.parameters(), strict=True):
        assert parameter.grad is not None
        assert direct.grad is not None
        torch.testing.assert_close(parameter.grad, direct.grad, atol=1e-6, rtol=1e-5, msg=name)
    # It is not the mean of what the batches give alone.
    with torch.no_grad():
        apart = torch.stack([whole_loss(model(loaded.batch)) for loaded in step.batches])
    assert (apart.mean() - loss).abs() > 1


def test_a_loss_that_sees_the_whole_step_trains(step):
    engine = make_embedder()
    model = copy.deepcopy(engine.model)
    optimizer = plain_optimizer(model)
    history = []
    for number in range(5):
        result = train_step(engine, MeanFeature(), step, number)
        history.append(float(result.losses[0]))

        optimizer.zero_grad()
        whole_loss(torch.cat([model(loaded.batch) for loaded in step.batches])).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
        optimizer.step()
        torch.testing.assert_close(result.grad_norm, norm, rtol=1e-5, atol=0)
        assert_same_weights(engine.model, model, atol=1e-5)
    assert history == sorted(history, reverse=True)
    assert history[-1] < 0.9 * history[0]


def test_the_residual_stream_may_be_bf16_under_autocast(step):
    train = replace(CONFIG.train, precision="bf16", residual="bf16")
    config = replace(CONFIG, train=train)
    task = Classification(config)
    engine = make_engine(task, config)
    assert engine.average is not None
    assert engine.model.residual_dtype == engine.average.residual_dtype == torch.bfloat16
    assert torch.isfinite(train_step(engine, task, step, 0).grad_norm)
    with pytest.raises(ValueError, match=r"train.residual=bf16 needs train.precision=bf16 or fp16"):
        make_engine(task, replace(config, train=replace(train, precision="fp32")))
