"""Checkpoints restore everything, appear whole, and name what is wrong with them."""

import copy

import pytest
import torch

from packvit.models import PackedViT, ViTConfig, load_model
from packvit.train.checkpoint import find_checkpoints, load_checkpoint, read_progress, save_checkpoint
from packvit.train.config import OptimConfig
from packvit.train.distributed import Ranks
from packvit.train.optim import make_optimizers

ALONE = Ranks(0, 1, torch.device("cpu"))


def trained(seed: int, optim: OptimConfig):
    """A small model with its average and optimizers after one step on made-up gradients."""
    torch.manual_seed(seed)
    model = PackedViT(ViTConfig(width=16, depth=1, heads=2, num_classes=3))
    average = copy.deepcopy(model)
    optimizers = make_optimizers(model, optim)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    return model, average, optimizers


def state_of(model, average, optimizers):
    tensors = [*model.parameters(), *average.parameters()]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                tensors += list(optimizer.state[parameter].values())
    return tensors


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_everything_comes_back_but_settings_stay(kind, tmp_path):
    model, average, optimizers = trained(0, OptimConfig(kind=kind, weight_decay=0.1))
    save_checkpoint(tmp_path, 7, model, average, optimizers, {"x": 1}, ALONE, keep=1)
    other = trained(1, OptimConfig(kind=kind, weight_decay=0.2))
    found = find_checkpoints(tmp_path)[-1]
    assert read_progress(found)["x"] == 1
    load_checkpoint(found, *other)
    for one, two in zip(state_of(model, average, optimizers), state_of(*other), strict=True):
        assert torch.equal(one, two)
    assert {group["weight_decay"] for group in other[2][0].param_groups} <= {0.2, 0.05, 0.0}
    loaded = load_model(found)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), average.parameters(), strict=True))


def test_old_ones_go_and_other_folders_are_left_alone(tmp_path):
    parts = trained(0, OptimConfig())
    (tmp_path / "step-best").mkdir()
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, *parts, {}, ALONE, keep=2)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    assert (tmp_path / "step-best").exists()


def test_damage_is_named(tmp_path):
    parts = trained(0, OptimConfig())
    path = save_checkpoint(tmp_path, 1, *parts, {}, ALONE, keep=1)
    for file in (path / "state").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="step-00000001 is damaged"):
        load_checkpoint(path, *parts)
    (path / "progress.json").write_text("{")
    with pytest.raises(ValueError, match="step-00000001 is damaged"):
        read_progress(path)
    (path / "progress.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99"):
        read_progress(path)
