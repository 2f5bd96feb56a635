"""Compiled blocks give the numbers of uncompiled ones, and no batch makes them compile again."""

import copy
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from packvit.cli import dispatch
from packvit.common.device import wants_compiling
from packvit.common.json_lines import read_json_lines
from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch
from packvit.train.step.step import Engine

# The compiler warns of what it does itself, such as reading .grad of tensors that are no leaves.
pytestmark = pytest.mark.filterwarnings("ignore:::torch", "ignore:The .grad attribute")

TINY = ViTConfig(width=16, depth=3, heads=2, num_classes=3, patch_buffer=8, pos_grid=(4, 4))
CONFIGS = {
    "rms": TINY,
    "layer_swiglu_rope": replace(TINY, qk_norm="layer", mlp="swiglu", norm="rms", pos_embed="rope_2d"),
    "scaled_cls": replace(TINY, layer_scale=0.1, cls=True, registers=1, qk_norm="none"),
    "parallel": replace(TINY, parallel=True, biases=False, pool="mean"),
}
NAMES = ["rms", *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name != "rms")]
# (rows, cols, patch size) of the images in each of the batch's sequences of 16 slots.
BATCHES = [
    [[(2, 3, 8), (1, 1, 4)], [(4, 2, 12)]],
    [[(4, 4, 8)], [(4, 4, 8)]],
    [[(1, 2, 12)] * 5, [(3, 3, 4), (1, 1, 16), (2, 2, 8)]],
    [[], [(2, 2, 20)]],
]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make_batch(cut_image, shapes) -> PackedBatch:
    rng = np.random.default_rng(0)
    cut = [
        [cut_image(rng.integers(0, 256, (r * p, c * p, 3), dtype=np.uint8), p) for r, c, p in row]
        for row in shapes
    ]
    return PackedBatch.build(cut, 16)


def pair(config: ViTConfig, backend) -> tuple[PackedViT, PackedViT]:
    """The same model twice, the second one compiled."""
    torch.manual_seed(0)
    model = PackedViT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    compiled = copy.deepcopy(model)
    compiled.compile_blocks(backend)
    return model, compiled


def graphs_and_breaks() -> tuple[int, int]:
    """Graphs compiled so far, and how often a block was left for attention, the only break there may be."""
    for reason in counters["graph_break"]:
        assert "Skip calling function `<function meet at" in reason
        assert "(reason: kernels and random numbers)" in reason
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.mark.parametrize("name", NAMES)
def test_one_compilation_serves_all_blocks_and_batches(cut_image, name: str):
    _, model = pair(CONFIGS[name], "aot_eager")
    for shapes in BATCHES:
        model(make_batch(cut_image, shapes)).sum().backward()
        assert graphs_and_breaks() == (2, 1)  # before and after attention
    model.eval()
    with torch.no_grad():
        for shapes in BATCHES:
            model(make_batch(cut_image, shapes))
            assert graphs_and_breaks() == (4, 2)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_and_gradients_are_those_of_the_model(cut_image, name: str, half: bool):
    model, compiled = pair(CONFIGS[name], "aot_eager")
    for shapes in BATCHES[:3]:
        outputs = []
        for m in (model, compiled):
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                outputs.append(m(make_batch(cut_image, shapes)).float())
            outputs[-1].square().sum().backward()
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        batch = make_batch(cut_image, BATCHES[0])
        torch.testing.assert_close(compiled.eval()(batch), model.eval()(batch), atol=1e-5, rtol=1e-5)


def test_dropped_paths_and_checkpointing_stay_what_they_were(cut_image):
    model, compiled = pair(replace(TINY, drop_path=0.5, checkpoint_every=2), "aot_eager")
    for shapes in BATCHES:
        batch, outputs = make_batch(cut_image, shapes), []
        for m in (model, compiled):
            torch.manual_seed(1)
            outputs.append(m(batch))
            outputs[-1].square().sum().backward()
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-5)
    assert graphs_and_breaks() == (3, 1)  # the first block never drops


def test_a_compiled_model_is_saved_and_copied_as_any_other(cut_image):
    model, compiled = pair(TINY, "aot_eager")
    assert compiled.state_dict().keys() == model.state_dict().keys()
    batch = make_batch(cut_image, BATCHES[0])
    copied = copy.deepcopy(compiled)
    torch.testing.assert_close(copied(batch), model(batch), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for changed in (model, copied):
            for parameter in changed.blocks.parameters():
                parameter.mul_(0.5)
    torch.testing.assert_close(copied(batch), model(batch), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(compiled(batch), model(batch), atol=1e-2)


@pytest.mark.slow
def test_inductor(cut_image):
    model, compiled = pair(TINY, "inductor")
    batch = make_batch(cut_image, BATCHES[0])
    for m in (model, compiled):
        m(batch).square().sum().backward()
    torch.testing.assert_close(compiled(batch), model(batch), atol=1e-5, rtol=1e-5)
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4)
    for shapes in BATCHES[1:]:
        compiled(make_batch(cut_image, shapes)).sum().backward()
    assert graphs_and_breaks() == (2, 1)


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])]
)
def test_a_compiled_run_has_the_losses_of_any_other(run_flags, digits_set, tmp_path, monkeypatch, backend):
    monkeypatch.setattr(PackedViT, "compile_blocks", partialmethod(PackedViT.compile_blocks, backend))
    graphs, update = [], Engine.update

    def counted(engine: Engine, *arguments) -> None:
        graphs.append(graphs_and_breaks()[0])
        update(engine, *arguments)

    monkeypatch.setattr(Engine, "update", counted)
    lines = {}
    for wish in ("off", "on"):
        changes = {"train__compile": wish, "train__precision": "fp32", "model__checkpoint_every": 2}
        changes |= {"data__workers": 0, "data__val_shards": digits_set / "val", "optim__warmup": 0}
        flags = run_flags(tmp_path / wish, **changes)
        assert dispatch(["train", *flags, "--eval.resolutions", "24", "--eval.patch-sizes", "8"]) == 0
        lines[wish] = read_json_lines(tmp_path / wish / "metrics.jsonl")
    assert graphs == [0] * 6 + [2] * 6  # before and after attention, at the first step alone
    assert graphs_and_breaks() == (4, 2)  # and once more to evaluate the average
    assert lines["on"][-1]["loss"] != lines["on"][0]["loss"]
    for name in ("loss", "grad_norm"):
        values = {wish: [line[name] for line in lines[wish]] for wish in lines}
        assert values["on"] == pytest.approx(values["off"], rel=1e-3)


@pytest.mark.parametrize(
    ("wish", "device", "compiled"),
    [("auto", "cpu", False), ("auto", "cuda", True), ("on", "cpu", True), ("off", "cuda", False)],
)
def test_the_device_decides_unless_the_user_does(wish: str, device: str, compiled: bool):
    assert wants_compiling(wish, torch.device(device)) == compiled
