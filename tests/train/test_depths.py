"""Training at random depths, and what comes of it at a chosen one."""

import copy
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from packvit.cli.eval import main as evaluate
from packvit.cli.train import main as train
from packvit.common.json_lines import read_json_lines
from packvit.common.ranks import Ranks
from packvit.data import LoadedBatch, pack_images
from packvit.models import PackedViT, ViTConfig, load_model, save_model
from packvit.packing import PackedBatch
from packvit.train.config import Config, TrainConfig
from packvit.train.loop import take_batches
from packvit.train.step.interface import StepBatches
from packvit.train.step.optim import OptimConfig
from packvit.train.step.step import Engine, train_step
from packvit.train.tasks.classification import Classification
from packvit.train.tasks.start import make_module

ALONE = Ranks(0, 1, torch.device("cpu"))
MODEL = ViTConfig(width=16, depth=3, heads=2, num_classes=3)


def make_engine(depths: tuple[int, ...]) -> tuple[Engine, Classification, Config]:
    config = Config(
        model=MODEL, optim=OptimConfig(lr=1e-3), train=TrainConfig(precision="fp32", depths=depths), seed=3
    )
    task = Classification(config)
    module = make_module(config, task)
    assert module.model.head is not None
    torch.manual_seed(0)
    nn.init.normal_(module.model.head.weight)
    return Engine(module, config.train, config.optim, ALONE, config.seed), task, config


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    images = [np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)] * 2
    packed = pack_images(images, [4, 8])
    return replace(packed, targets={"label": torch.tensor([0, 2])})


def test_a_shallow_model_is_the_first_blocks_and_the_head_of_the_whole(batch, tmp_path):
    torch.manual_seed(0)
    model = PackedViT(MODEL).eval()
    assert model.head is not None
    nn.init.normal_(model.head.weight)
    save_model(model, tmp_path)
    answers = []
    for depth in (1, 2, 3):
        shallow = load_model(tmp_path, depth=depth)
        model.depth = depth
        assert shallow.config == replace(MODEL, depth=depth)
        assert torch.equal(shallow(batch), model(batch))
        assert MODEL.batch_flops(batch, depth) == shallow.config.batch_flops(batch)
        answers.append(model(batch))
    assert not torch.allclose(answers[0], answers[1])


def test_a_step_trains_the_blocks_of_its_depth_and_the_head(batch):
    engine, task, _ = make_engine((1, 3))
    step = StepBatches([LoadedBatch(batch, batch.facts())], images=2)
    plain = copy.deepcopy(engine.model)
    plain.depth = 1
    labels = batch.labels
    assert labels is not None
    nn.functional.cross_entropy(plain(batch), labels).backward()
    engine.model.depth = 1
    task.backward(engine, step)
    for (name, parameter), direct in zip(engine.model.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None
        is_skipped = name.startswith(("blocks.1", "blocks.2"))
        assert (direct.grad is None) == is_skipped
        expected = torch.zeros_like(parameter) if direct.grad is None else direct.grad
        torch.testing.assert_close(parameter.grad, expected, msg=name)


def test_the_depth_of_a_step_follows_from_its_number(batch):
    engine, task, config = make_engine((1, 3))
    drawn = [engine.depth_of(number) for number in range(1000)]
    other, _, _ = make_engine((1, 3))
    assert drawn == [other.depth_of(number) for number in range(1000)]
    assert all(abs(count - 500) < 60 for count in Counter(drawn).values())
    loaded = LoadedBatch(batch, batch.facts())
    step = StepBatches([loaded], images=2)
    ran = []
    hook = engine.model.blocks[-1].register_forward_hook(lambda *_: ran.append(number))
    for number in range(8):
        train_step(engine, task, step, number)
        taken = take_batches(iter([loaded]), 1, task, drawn[number])
        assert taken.flops == 3 * replace(config.model, depth=drawn[number] or 3).batch_flops(batch)
    assert ran == [number for number in range(8) if drawn[number] == 3]
    hook.remove()
    assert engine.whole().depth == 3


def test_the_whole_depth_alone_changes_nothing(batch):
    step = StepBatches([LoadedBatch(batch, batch.facts())], images=2)
    (one, task, _), (two, _, _) = make_engine(()), make_engine((3,))
    for number in range(3):
        results = [train_step(engine, task, step, number) for engine in (one, two)]
        assert torch.equal(results[0].losses, results[1].losses)
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("depths", [(0, 3), (1, 2), (3, 3), (3, 4)])
def test_impossible_depths_are_refused(depths):
    with pytest.raises(ValueError, match=r"train\.depths=.*model\.depth=3"):
        make_engine(depths)


def test_a_run_at_random_depths_is_evaluated_at_each(run_flags, digits_set, tmp_path):
    run, out = tmp_path / "run", tmp_path / "eval"
    train([*run_flags(run, data__workers=0, train__checkpoint_every=9), "--train.depths", "1", "2"])
    lines = read_json_lines(run / "metrics.jsonl")
    assert {depth for line in lines for depth in line["loss_by_depth"]} == {"1", "2"}
    assert all(list(line["loss_by_depth"].values()) == [line["loss"]] for line in lines)
    setting = ["--shards", str(digits_set / "val"), "--resolutions", "40", "--patch-sizes", "8"]
    setting += ["--no-cost", "--workers", "0"]
    with pytest.raises(ValueError, match="models of other depths need a folder"):
        evaluate([str(run), *setting, "--depths", "1", "2"])
    evaluate([str(run), *setting, "--depths", "1", "2", "--out", str(out)])
    results = json.loads((out / "results.json").read_text())
    assert [model["name"] for model in results["model"]] == ["run-d1", "run-d2"]
    assert [model["config"]["depth"] for model in results["model"]] == [1, 2]
    shallow, whole = (row["gflops_per_image"] for row in results["rows"])
    assert shallow < whole < 2 * shallow
