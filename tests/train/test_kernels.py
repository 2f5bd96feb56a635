"""Which attention a run takes on a GPU; the measurements themselves need one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from packvit.common.ranks import Ranks
from packvit.data import pack_images
from packvit.models import ViTConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.step import kernels
from packvit.train.step.kernels import choose_kernels
from packvit.train.step.optim import OptimConfig
from packvit.train.step.step import Engine
from packvit.train.tasks.make import make_task
from packvit.train.tasks.start import make_module

CONFIG = Config(
    model=ViTConfig(width=16, depth=1, heads=2, num_classes=3), train=TrainConfig(ema=0.5, precision="bf16")
)


def make_engine(**train: object) -> Engine:
    config = replace(CONFIG, train=replace(CONFIG.train, **train))
    ranks = Ranks(0, 1, torch.device("cpu"))
    return Engine(make_module(config, make_task(config)), config.train, OptimConfig(), ranks)


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What is measured; `flex` is the fastest, and FA3 is installed."""
    found: list[tuple] = []

    def fastest(*arguments: object) -> str:
        found.append(arguments)
        return "flex"

    monkeypatch.setattr(kernels, "fastest_backend", fastest)
    monkeypatch.setattr(kernels, "activate_flash", lambda *arguments: "FA3")
    monkeypatch.setattr(kernels, "choose_backend", lambda name, *rest: "sdpa" if name == "auto" else name)
    return found


def test_the_model_and_its_average_take_what_is_fastest_for_the_batch(asked):
    engine = make_engine()
    batch = pack_images([np.zeros((32, 48, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)], 16, seq_len=8)
    assert choose_kernels(engine, batch) == "Attention: flex, FA3"
    assert asked == [(torch.device("cpu"), torch.bfloat16, 2, 8, [6, 1, 1])]
    assert engine.average is not None
    assert engine.model.backend == engine.average.backend == "flex"


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"attention": "sdpa"}, "Attention: sdpa, FA3"),
        ({"deterministic": True}, "Attention: sdpa"),
    ],
)
def test_nothing_is_measured_where_the_choice_is_made(train, said, asked):
    batch = pack_images([np.zeros((16, 16, 3), np.uint8)], 16)
    assert choose_kernels(make_engine(**train), batch) == said
    assert asked == []
