"""A compiled model gives the numbers of any other, and no batch makes it compile again."""

import copy
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from packvit.cli import dispatch
from packvit.common.device import wants_compiling
from packvit.common.json_lines import read_json_lines
from packvit.models import PackedText, PackedViT, TextConfig, TextTower, ViTConfig
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
POSITIONS = {
    "fourier": replace(TINY, pos_table="fourier", pre_norm=True),
    "absolute_grid": replace(TINY, pos_embed="grid_2d", pos_coords="absolute", rope_coords="fractional"),
}
NAMES = ["rms", *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name != "rms")]
# (rows, cols, patch size) of the images in each of the batch's sequences of 16 slots.
BATCHES = [
    [[(2, 3, 8), (1, 1, 4)], [(4, 2, 12)]],
    [[(4, 4, 8)], [(4, 4, 8)]],
    [[(1, 2, 12)] * 5, [(3, 3, 8), (1, 1, 16), (2, 2, 8)]],
    [[], [(2, 2, 8)]],
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


class Counting:
    """A backend of torch.compile that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.graphs += 1
        return graph.forward


def graphs() -> int:
    """Graphs compiled so far; there is no other reason to leave one than its end."""
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def test_one_compilation_serves_all_blocks_and_batches(cut_image):
    backend = Counting()
    _, model = pair(TINY, backend)
    # Layout, places, before and after attention, pooling; and each patch size with more than one patch.
    for shapes in BATCHES:
        model(make_batch(cut_image, shapes)).sum().backward()
        assert backend.graphs == 5 + 2
    model.eval()
    with torch.no_grad():
        for shapes in BATCHES:
            model(make_batch(cut_image, shapes))
            assert backend.graphs == 2 * (5 + 2)


@pytest.mark.parametrize(
    "name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in POSITIONS)]
)
def test_ten_batches_of_different_sizes_compile_each_size_once(cut_image, name: str):
    backend, rng, sizes = Counting(), np.random.default_rng(0), (4, 6, 8, 12)
    model, compiled = pair((CONFIGS | POSITIONS)[name], backend)
    seen = set()
    for _ in range(10):
        drawn = [int(p) for p in rng.choice(sizes, rng.integers(1, 4), replace=False)]
        shapes = [[(2, int(rng.integers(1, 5)), p), (1, 3, p)] for p in drawn]
        batch = make_batch(cut_image, shapes)
        out = compiled(batch)
        out.sum().backward()
        torch.testing.assert_close(out, model(batch), atol=1e-5, rtol=1e-5)
        seen |= set(drawn)
        assert backend.graphs == 5 + len(seen)
    assert seen == set(sizes)


def test_a_model_compiles_whatever_others_have(cut_image):
    backend, batch = Counting(), make_batch(cut_image, BATCHES[0])
    with torch._dynamo.config.patch(recompile_limit=2):
        for width in (8, 12, 16):
            before = backend.graphs
            _, model = pair(replace(TINY, width=width, depth=1), backend)
            model(batch)
            assert backend.graphs == before + 5 + 2
        _, again = pair(replace(TINY, width=8, depth=1), backend)
        again(batch)
    assert backend.graphs == 3 * 7  # models of one configuration share what is compiled


def test_past_the_limit_it_raises_instead_of_running_uncompiled(cut_image):
    _, model = pair(TINY, Counting())
    batch = make_batch(cut_image, BATCHES[0])
    model(batch)
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        torch.no_grad(),
        pytest.raises(FailOnRecompileLimitHit, match="fullgraph"),
    ):
        model(batch)


@pytest.mark.parametrize(
    ("name", "half"),
    [("rms", False), *((n, True) for n in CONFIGS)],
)
@pytest.mark.slow
def test_numbers_and_gradients_are_those_of_the_model(cut_image, name: str, half: bool):
    model, compiled = pair(CONFIGS[name], "aot_eager")
    for shapes in (BATCHES[1], [[(3, 2, 8)], [(1, 4, 8)], [(2, 2, 8)]]):
        outputs = []
        for m in (model, compiled):
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                outputs.append(m(make_batch(cut_image, shapes)).float())
            outputs[-1].square().sum().backward()
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        batch = make_batch(cut_image, BATCHES[1])
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
    # Layout, places, before attention, after it with and without dropping, pooling, and two patch sizes.
    assert graphs() == 4 + 2 + 2


def test_a_compiled_model_is_saved_and_copied_as_any_other(cut_image):
    model, compiled = pair(TINY, Counting())
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


TEXTS = [[[3, 1, 4, 1], [5], [9, 2]], [[6]], [[7]] * 9, [], [[1, 2, 3, 4, 5, 6], [7, 8]]]
TEXT = TextConfig(width=16, depth=3, heads=2, vocab_size=10, max_tokens=6, embed_dim=4)


@pytest.mark.parametrize(
    "config", [TEXT, replace(TEXT, pool="last", norm="rms", parallel=True)], ids=["map", "last"]
)
def test_a_text_tower_compiles_once_and_gives_the_same_numbers_and_gradients(config: TextConfig):
    backend = Counting()
    torch.manual_seed(0)
    tower = TextTower(config)
    compiled = copy.deepcopy(tower)
    compiled.compile_blocks(backend)
    for number, texts in enumerate(TEXTS):
        outputs = [each(PackedText.build(texts)) for each in (tower, compiled)]
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
        for output in outputs:
            output.square().sum().backward()
        # Layout, before and after attention, pooling; a single token alone is a case of its own.
        assert backend.graphs == (4 if number < 1 else 6), number
    for a, b in zip(tower.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-5)


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
    assert graphs() == 5 + 2


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])]
)
def test_a_compiled_run_has_the_losses_of_any_other(run_flags, digits_set, tmp_path, monkeypatch, backend):
    monkeypatch.setattr(PackedViT, "compile_blocks", partialmethod(PackedViT.compile_blocks, backend))
    compiled, update = [], Engine.update

    def counted(engine: Engine, *arguments) -> None:
        compiled.append(graphs())
        update(engine, *arguments)

    monkeypatch.setattr(Engine, "update", counted)
    lines = {}
    for wish in ("off", "on"):
        changes = {"train__compile": wish, "train__precision": "fp32", "model__checkpoint_every": 2}
        changes |= {"data__workers": 0, "data__val_shards": digits_set / "val", "optim__warmup": 0}
        changes |= {"views__patch_sizes": 8}
        flags = run_flags(tmp_path / wish, **changes)
        assert dispatch(["train", *flags, "--eval.resolutions", "24", "--eval.patch-sizes", "8"]) == 0
        lines[wish] = read_json_lines(tmp_path / wish / "metrics.jsonl")
    # Layout, places, before and after attention, pooling and the one patch size, at the first step alone.
    assert compiled == [0] * 6 + [6] * 6
    assert graphs() == 12  # and once more to evaluate the average
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
