"""Checkpoints restore everything, appear whole, and name what is wrong with them."""

import errno
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from packvit.common.files import hash_file
from packvit.common.ranks import Ranks
from packvit.models import ViTConfig, load_model
from packvit.train.config import Config, TrainConfig
from packvit.train.step.checkpoint import Checkpointer, named_tensors
from packvit.train.step.integrity import tensor_names
from packvit.train.step.kept import find_checkpoints
from packvit.train.step.optim import OptimConfig
from packvit.train.step.resume import find_resume
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
    find_resume(tmp_path, "", pytest.fail).load({"note": note})
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


def saved(tmp_path: Path, steps: int = 1) -> Checkpointer:
    """Checkpoints of steps 1 to `steps` below `tmp_path`."""
    checkpointer = Checkpointer(tmp_path, CONFIG.train, ALONE, trained(0), {"note": Note(5)})
    for step in range(1, steps + 1):
        checkpointer.save(step)
    return checkpointer


def save_and_wait(checkpointer: Checkpointer, step: int) -> None:
    checkpointer.save(step)
    checkpointer.wait()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


FILES = [
    "config.json",
    "hashes-00000.json",
    "model.safetensors",
    "progress.json",
    "state/.metadata",
    "state/__0_0.distcp",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", [flip_a_bit, lambda path: path.write_bytes(path.read_bytes()[:40]), Path.unlink]
)
def test_a_damaged_checkpoint_is_passed_over(name, damage, tmp_path):
    checkpointer = saved(tmp_path, 2)
    first, second = find_checkpoints(tmp_path)
    damage(second / name)
    said: list[str] = []
    resume = find_resume(tmp_path, "", said.append)
    assert (resume.path, resume.aside) == (first, (second,))
    assert len(said) == 1
    assert "step-00000002 is damaged" in said[0]
    assert "resuming from the previous checkpoint" in said[0]
    note = Note(0)
    resume.load({"note": note})
    assert note.number == 5
    checkpointer.load(first)
    # The next run must not meet it again, and its step is free.
    checkpointer.tidy(resume.aside)
    assert find_checkpoints(tmp_path) == [first]
    checkpointer.save(2)
    assert find_resume(tmp_path, "", said.append).path == second
    assert len(said) == 1


@pytest.mark.parametrize("name", ["version", "ranks"])
def test_no_bit_of_what_says_how_to_check_may_flip(name, tmp_path):
    saved(tmp_path, 2)
    first, second = find_checkpoints(tmp_path)
    path = second / "progress.json"
    text = path.read_bytes()
    place = text.index(f'"{name}": '.encode()) + len(name) + 4
    for bit in range(8):
        path.write_bytes(text[:place] + bytes([text[place] ^ 1 << bit]) + text[place + 1 :])
        assert find_resume(tmp_path, "", lambda line: None).path == first


def test_a_run_never_starts_anew_beside_damaged_checkpoints(tmp_path):
    saved(tmp_path, 2)
    for path in find_checkpoints(tmp_path):
        flip_a_bit(path / "state/__0_0.distcp")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is intact: remove them to start anew"):
        find_resume(tmp_path, "", lambda line: None)
    assert find_resume(tmp_path / "empty", "", pytest.fail).path is None


def test_a_run_goes_back_to_a_step_once(tmp_path):
    checkpointer = saved(tmp_path, 3)
    with pytest.raises(ValueError, match=r"step-9: .* has step-00000001, step-00000002, step-00000003"):
        find_resume(tmp_path, "step-9", pytest.fail)
    resume = find_resume(tmp_path, "step-1", pytest.fail)
    assert resume.path is not None
    assert [path.name for path in (resume.path, *resume.aside)] == [
        "step-00000001",
        "step-00000002",
        "step-00000003",
    ]
    checkpointer.tidy(resume.aside)
    assert len(list(tmp_path.glob("aside-step-*"))) == 2
    checkpointer.resumed_from = "step-1"
    checkpointer.save(2)
    again = find_resume(tmp_path, "step-1", pytest.fail)
    assert again.path is not None
    assert (again.path.name, again.aside) == ("step-00000002", ())


def test_other_versions_are_named(tmp_path):
    saved(tmp_path)
    path = find_checkpoints(tmp_path)[0] / "progress.json"
    path.write_text('{"version": 99, "ranks": 1}')
    hashes = json.loads((path.parent / "hashes-00000.json").read_text())
    (path.parent / "hashes-00000.json").write_text(json.dumps(hashes | {path.name: hash_file(path)}))
    with pytest.raises(ValueError, match="version 99, this packvit reads 3"):
        find_resume(tmp_path, "", pytest.fail)


def test_settings_may_change_and_what_has_no_state_is_named(tmp_path):
    """Other decay, layer decay or frozen parts are other groups of the optimizer."""
    frozen = replace(CONFIG, optim=OptimConfig(freeze=("patch_embed",)))
    engine = trained(0, frozen)
    Checkpointer(tmp_path, CONFIG.train, ALONE, engine, {}).save(1)
    path = find_checkpoints(tmp_path)[0]
    for optim in (
        OptimConfig(weight_decay=0.0, freeze=("patch_embed",)),
        OptimConfig(layer_decay=0.5, freeze=("patch_embed",)),
        OptimConfig(freeze=("patch_embed", "pos_embed")),
    ):
        other = trained(1, replace(CONFIG, optim=optim))
        Checkpointer(tmp_path, CONFIG.train, ALONE, other, {}).load(path)
        for one, two in zip(engine.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(one, two)
    thawed = Checkpointer(tmp_path, CONFIG.train, ALONE, trained(1), {})
    with pytest.raises(ValueError, match=r"has no optimizer.state.*patch_embed.*: what optim.freeze froze"):
        thawed.load(path)


class Harm:
    """Unpickled, it calls a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_runs_no_code(tmp_path):
    checkpointer = saved(tmp_path / "checkpoints")
    path = find_checkpoints(tmp_path / "checkpoints")[0]
    metadata = path / "state/.metadata"
    assert all(name in tensor_names(metadata) for name in named_tensors(checkpointer.engine.state_dict()))
    metadata.write_bytes(pickle.dumps(Harm(tmp_path / "harmed")))
    with pytest.raises(ValueError, match=r"is damaged .*mkdir, which no checkpoint needs"):
        checkpointer.load(path)
    # A name with dots would reach through an allowed module to others.
    metadata.write_bytes(b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x8c\x09os.system\x93.")
    with pytest.raises(ValueError, match=r"os\.system, which no checkpoint needs"):
        checkpointer.load(path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_is_named_and_harms_nothing(in_background, tmp_path, monkeypatch):
    checkpointer = saved(tmp_path)
    checkpointer.config = replace(CONFIG.train, async_checkpoints=in_background)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"no space for a checkpoint .* it takes 0\.00 GB, 0\.00 GB are free"):
        checkpointer.save(2)
    # It fills while the checkpoint is written.
    free = iter([usage.free])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=next(free, 0)))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "unexpected pos 64 vs 0")

    monkeypatch.setattr(FileSystemWriter, "write_data", fail)
    with pytest.raises(OSError, match=r"partial-00000002 could not be written .no space left on the disk"):
        save_and_wait(checkpointer, 2)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000001"]
    checkpointer.tidy(())
    assert list(tmp_path.glob("partial-*")) == []
    assert find_resume(tmp_path, "", pytest.fail).path == tmp_path / "step-00000001"
