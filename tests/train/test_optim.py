"""Optimizers hold every parameter once, decay kernels only, and the average follows the weights."""

import pytest
import torch

from packvit.models import PackedViT, ViTConfig
from packvit.train.step.optim import OptimConfig, freeze, make_optimizers
from packvit.train.step.step import set_lr, update_ema


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


def test_the_average_forgets_the_start_and_then_follows_slowly():
    average, current = [torch.zeros(3)], [torch.ones(3)]
    update_ema(average, current, decay=0.9, updates=0)
    torch.testing.assert_close(average[0], torch.full((3,), 0.9))  # decay 1/10 at first
    average = [torch.zeros(3)]
    update_ema(average, current, decay=0.9, updates=1000)
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
    with pytest.raises(ValueError, match=r"optim\.freeze='heda'"):
        freeze(small_model(), ["heda"])
