"""Optimizers hold every parameter once, decay kernels only, and the average follows the weights."""

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from packvit.models import PackedViT, ViTConfig
from packvit.train.step.average import update_ema
from packvit.train.step.muon import Muon, newton_schulz_flops, part_of, share_work
from packvit.train.step.optim import OptimConfig, freeze, make_optimizers
from packvit.train.step.schedule import set_lr


def small_model() -> PackedViT:
    torch.manual_seed(0)
    return PackedViT(ViTConfig(width=16, depth=2, heads=2, num_classes=3, registers=1))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_has_one_group_and_only_kernels_decay(kind):
    model = small_model()
    config = OptimConfig(kind=kind, weight_decay=0.03, head_weight_decay=3.0)
    decay = {}
    for optimizer in make_optimizers(model, config):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert parameter not in decay
                decay[parameter] = group["weight_decay"]
    by_name = {name: decay[parameter] for name, parameter in model.named_parameters()}
    assert len(by_name) == len(decay)
    assert by_name["head.weight"] == 3.0
    assert {name for name, value in by_name.items() if value == 0.03} >= {
        name
        for name in by_name
        if name.startswith("blocks.") and name.endswith("weight") and "norm" not in name
    }
    assert all(value == 0 for name, value in by_name.items() if name.endswith("bias") or "norm" in name)
    assert all(value == 0 for name, value in by_name.items() if name.startswith(("pos_embed", "registers")))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_longest_prefix_of_a_name_tells_its_learning_rate_and_decay(kind):
    model = small_model()
    factors = (("model.", 0.5), ("model.blocks.1.", 0.0), ("model.blocks.1.mlp.", 0.25))
    config = OptimConfig(
        kind=kind, lr=2.0, muon_lr=4.0, weight_decay=0.1, lr_factors=factors,
        weight_decays=(("model.blocks.0.attn.", 0.7), ("model.head.", 0.0)),
    )  # fmt: skip
    found = {}
    for number, optimizer in enumerate(make_optimizers(model, config)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                found[parameter] = (group["peak_lr"] / (2.0, 4.0)[number], group["weight_decay"])
    by_name = {name: found[parameter] for name, parameter in model.named_parameters()}
    assert by_name["blocks.0.mlp.fc1.weight"] == (0.5, 0.1)
    assert by_name["blocks.0.attn.qkv.weight"] == (0.5, 0.7)
    assert by_name["blocks.0.attn.qkv.bias"] == (0.5, 0.0)  # never decays
    assert by_name["blocks.1.attn.qkv.weight"] == (0.0, 0.1)
    assert by_name["blocks.1.mlp.fc1.weight"] == (0.25, 0.1)
    assert by_name["head.weight"] == (0.5, 0.0)
    with pytest.raises(ValueError, match=r"optim\.lr_factors: no parameter's name starts with 'text\.'"):
        make_optimizers(model, OptimConfig(lr_factors=(("text.", 1.0),)))
    with pytest.raises(ValueError, match=r"optim\.weight_decays: -1"):
        OptimConfig(weight_decays=(("text.", -1),))


def test_muon_takes_the_matrices_of_the_blocks():
    model = small_model()
    adamw, muon = make_optimizers(model, OptimConfig(kind="muon"))
    assert isinstance(muon, torch.optim.Muon)
    matrices = {p for name, p in model.blocks.named_parameters() if p.ndim == 2}
    assert {p for group in muon.param_groups for p in group["params"]} == matrices
    assert not matrices & {p for group in adamw.param_groups for p in group["params"]}


def test_the_learning_rate_is_a_factor_of_each_peak():
    optimizers = make_optimizers(small_model(), OptimConfig(kind="muon", lr=1e-3, muon_lr=1e-2))
    set_lr(optimizers, 0.5)
    assert {group["lr"] for group in optimizers[0].param_groups} == {5e-4}
    assert {group["lr"] for group in optimizers[1].param_groups} == {5e-3}


# Tall, wide, square, a vector; some of one shape or its transpose.
SHAPES = ((24, 8), (8, 24), (8, 8), (24, 8), (5, 7), (1, 6), (7, 5))


def matrices(seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(shape) for shape in SHAPES]


def groups_of(tensors: Sequence[Tensor]) -> list[dict]:
    """Two groups with decay and learning rate of their own."""
    return [
        {"params": tensors[:3], "weight_decay": 0.1, "lr": 0.02},
        {"params": tensors[3:], "weight_decay": 0.0, "lr": 0.01},
    ]


def torch_muon(tensors: Sequence[Tensor]) -> torch.optim.Muon:
    return torch.optim.Muon(groups_of(tensors), 0.02, momentum=0.9, adjust_lr_fn="match_rms_adamw")


def take_steps(optimizer: torch.optim.Optimizer, seeds: Sequence[int]) -> list[Tensor]:
    """Steps on random gradients; the momentum after them."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for seed in seeds:
        for parameter, gradient in zip(held, matrices(seed), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [optimizer.state[p]["momentum_buffer"] for p in held]


def test_muon_in_batches_is_that_of_torch():
    ours, theirs = matrices(0), matrices(0)
    momenta = take_steps(Muon(groups_of(ours), 0.02, 0.9), (1, 2, 3))
    expected = take_steps(torch_muon(theirs), (1, 2, 3))
    for one, two, momentum, other in zip(ours, theirs, momenta, expected, strict=True):
        torch.testing.assert_close(momentum, other, rtol=0, atol=1e-7)
        # Products of bf16 may round differently in batches; without Nesterov's step it were 4e-3.
        torch.testing.assert_close(one, two, rtol=0, atol=2e-4)


def test_muon_goes_on_from_the_state_of_torch():
    theirs = matrices(0)
    saved = torch_muon(theirs)
    take_steps(saved, (1, 2))
    ours = [tensor.clone() for tensor in theirs]
    optimizer = Muon(groups_of(ours), 0.02, 0.9)
    optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert optimizer.state_dict().keys() == saved.state_dict().keys()
    take_steps(optimizer, (3,))
    take_steps(saved, (3,))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-4)


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Zeros of different signs differ."""
    return torch.equal(one.view(torch.int32), two.view(torch.int32))


def test_what_the_device_skips_changes_no_bit():
    tensors = matrices(0)
    tensors[0][0] = -0.0
    optimizer = Muon(groups_of(tensors), 0.02, 0.9)
    momenta = take_steps(optimizer, (1,))
    before = [tensor.clone() for tensor in (*tensors, *momenta)]
    for tensor in tensors:
        tensor.grad = torch.full_like(tensor, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(map(same_bits, (*tensors, *momenta), before))
    update_ema(tensors, [torch.full_like(tensor, torch.nan) for tensor in tensors], 0.9, 0, torch.ones(()))
    assert all(map(same_bits, tensors, before))
    optimizer.found_inf = torch.zeros(())
    take_steps(optimizer, (2,))
    assert not any(map(same_bits, tensors, before))


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match="2D"):
        Muon([{"params": [torch.zeros(3)]}], 0.02, 0.9)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1), st.integers(1, 9))
def test_every_matrix_has_one_owner_and_ranks_have_about_the_same_work(shapes, ranks):
    owned = share_work(shapes, ranks)
    assert sorted(i for each in owned for i in each) == list(range(len(shapes)))
    work = [sum(newton_schulz_flops(shapes[i]) for i in each) for each in owned]
    assert max(work) - min(work) <= max(map(newton_schulz_flops, shapes))


@given(st.integers(1, 40), st.integers(1, 9))
def test_parts_of_a_matrix_are_those_of_torch(rows, ranks):
    parts = [len(part) for part in torch.zeros(rows, 2).chunk(ranks)]
    parts += [0] * (ranks - len(parts))
    assert [part_of((rows, 2), rank, ranks) for rank in range(ranks)] == [(part, 2) for part in parts]


def test_the_average_forgets_the_start_and_then_follows_slowly():
    average, current = [torch.zeros(3)], [torch.ones(3)]
    update_ema(average, current, decay=0.9, updates=0, skip=None)
    torch.testing.assert_close(average[0], torch.full((3,), 0.9))  # decay 1/10 at first
    average = [torch.zeros(3)]
    update_ema(average, current, decay=0.9, updates=1000, skip=None)
    torch.testing.assert_close(average[0], torch.full((3,), 0.1))
    torch.testing.assert_close(current[0], torch.ones(3))


def test_layers_learn_slower_the_earlier_they_come():
    model = small_model()
    (adamw,) = make_optimizers(model, OptimConfig(lr=1.0, layer_decay=0.5))
    peak = {p: group["peak_lr"] for group in adamw.param_groups for p in group["params"]}
    by_name = {name: peak[parameter] for name, parameter in model.named_parameters()}
    assert by_name["head.weight"] == by_name["norm.weight"] == 1
    assert {by_name[name] for name in by_name if name.startswith("blocks.1.")} == {0.5}
    assert {by_name[name] for name in by_name if name.startswith("blocks.0.")} == {0.25}
    assert by_name["patch_embed.weight"] == by_name["prefix"] == by_name["pos_embed.table_y"] == 0.125


def test_frozen_parameters_are_in_no_group():
    model = small_model()
    freeze(model, ["body"])
    (adamw,) = make_optimizers(model, OptimConfig(kind="muon"))
    trained = {p for group in adamw.param_groups for p in group["params"]}
    assert trained == {model.get_parameter("head.weight"), model.get_parameter("head.bias")}
    with pytest.raises(ValueError, match="no parameter to train"):
        freeze(model, ["head"])
    with pytest.raises(ValueError, match=r"optim\.freeze: no parameter's name starts with 'heda'"):
        freeze(small_model(), ["heda"])
