"""Checkpoints restore everything, appear whole, and name what is wrong with them."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from packvit.common.ranks import Ranks
from packvit.models import ViTConfig, load_model
from packvit.train.config import Config, TrainConfig
from packvit.train.step.checkpoint import Checkpointer, find_checkpoints, load_parts
from packvit.train.step.optim import OptimConfig
from packvit.train.step.step import Engine
from packvit.train.tasks.make import make_task
from packvit.train.tasks.start import make_module

ALONE = Ranks(0, 1, torch.device("cpu"))
CONFIG = Config(model=ViTConfig(width=16, depth=1, heads=2, num_classes=3), train=TrainConfig(ema=0.5))


class Note:
    """A part of a checkpoint that is one number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["x"]


def trained(seed: int, config: Config = CONFIG) -> Engine:
    """A small engine after one step on made-up gradients."""
    torch.manual_seed(seed)
    config = replace(config, seed=seed)
    engine = Engine(make_module(config, make_task(config)), config.train, config.optim, ALONE, seed)
    update(engine, 0)
    return engine


def update(engine: Engine, number: int) -> None:
    """A step on made-up gradients."""
    for parameter in engine.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    engine.update(engine.clip(), number, 1.0)


def tensors_of(engine: Engine) -> list[torch.Tensor]:
    assert engine.average is not None
    tensors: list[torch.Tensor] = [*engine.model.parameters(), *engine.average.parameters()]
    for optimizer in engine.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                tensors += list(optimizer.state[parameter].values())
    return tensors


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("in_background", [False, True])
def test_everything_comes_back_but_settings_stay(kind, in_background, tmp_path):
    config = replace(CONFIG, optim=OptimConfig(kind=kind, weight_decay=0.1))
    engine = trained(0, config)
    expected = [tensor.clone() for tensor in tensors_of(engine)]
    train, note = replace(CONFIG.train, async_checkpoints=in_background), Note(1)
    checkpointer = Checkpointer(tmp_path, train, ALONE, engine, {"note": note})
    checkpointer.save(7)
    update(engine, 1)
    note.number = 2
    for parameter in engine.model.parameters():
        parameter.data += 1  # what happens after the save must not be in it
    checkpointer.wait()
    other = trained(1, replace(CONFIG, optim=OptimConfig(kind=kind, weight_decay=0.2)))
    found = find_checkpoints(tmp_path)[-1]
    load_parts(found, {"note": note})
    Checkpointer(tmp_path, train, ALONE, other, {}).load(found)
    assert note.number == 1
    for one, two in zip(expected, tensors_of(other), strict=True):
        assert torch.equal(one, two)
    assert 0.1 not in {group["weight_decay"] for o in other.optimizers for group in o.param_groups}
    loaded = load_model(found)
    assert other.average is not None
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), other.average.parameters(), strict=True)
    )


def test_old_ones_go_and_others_are_left_alone(tmp_path):
    engine = trained(0)
    (tmp_path / "step-best").mkdir()
    train = replace(CONFIG.train, keep_checkpoints=2, keep_every=3)
    checkpointer = Checkpointer(tmp_path, train, ALONE, engine, {})
    for step in range(1, 7):
        checkpointer.save(step)
    assert [path.name for path in find_checkpoints(tmp_path)] == [
        "step-00000003",
        "step-00000005",
        "step-00000006",
    ]
    assert (tmp_path / "step-best").exists()


def test_a_checkpoint_that_is_not_complete_does_not_count(tmp_path):
    train = replace(CONFIG.train, async_checkpoints=True)
    checkpointer = Checkpointer(tmp_path, train, ALONE, trained(0), {})
    checkpointer.save(1)
    assert find_checkpoints(tmp_path) == []
    assert checkpointer.pending is not None
    checkpointer.pending.written.result()
    checkpointer.poll()
    assert len(find_checkpoints(tmp_path)) == 1


def test_damage_is_named(tmp_path):
    checkpointer = Checkpointer(tmp_path, CONFIG.train, ALONE, trained(0), {})
    checkpointer.save(1)
    path = find_checkpoints(tmp_path)[0]
    for file in (path / "state").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="step-00000001 is damaged"):
        checkpointer.load(path)
    (path / "progress.json").write_text("{")
    with pytest.raises(ValueError, match="step-00000001 is damaged"):
        load_parts(path, {})
    (path / "progress.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99"):
        load_parts(path, {})
