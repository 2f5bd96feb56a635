"""A whole model on a GPU gives the numbers of float64 on a CPU; so does one on a CPU in lower precision."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch

# The compiler warns of what it does itself.
pytestmark = pytest.mark.filterwarnings("ignore:::torch", "ignore:The .grad attribute")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])]
SMALL = {"depth": 2, "num_classes": 5, "patch_buffer": 16, "pos_grid": (4, 4)}
MODELS = {
    "heads of 24": ViTConfig(width=48, heads=2, **SMALL),
    "heads of 80": ViTConfig(width=160, heads=2, qk_norm="layer", **SMALL),
    "heads of 128": ViTConfig(width=256, heads=2, qk_norm="none", pool="mean", **SMALL),
    "prefix": ViTConfig(width=64, heads=2, cls=True, registers=3, pool="cls_mean", **SMALL),
    "rotary": ViTConfig(width=64, heads=2, pos_embed="rope_2d", mlp="swiglu", norm="rms", **SMALL),
    "parallel": ViTConfig(width=64, heads=2, parallel=True, biases=False, layer_scale=0.3, **SMALL),
}
# (rows, cols, patch size) of the images in each sequence of 64 slots.
SHAPES = [[(6, 7, 8), (1, 1, 16)], [(3, 3, 12), (5, 8, 8), (2, 2, 16)], []]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_batch(cut_image, shapes=SHAPES) -> PackedBatch:
    rng = np.random.default_rng(0)
    cut = [
        [cut_image(rng.integers(0, 256, (r * p, c * p, 3), dtype=np.uint8), p, label=0) for r, c, p in row]
        for row in shapes
    ]
    return PackedBatch.build(cut, 64, min_sequences=len(shapes))


def make_model(config: ViTConfig) -> PackedViT:
    torch.manual_seed(0)
    model = PackedViT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def logits_and_gradients(model: PackedViT, batch: PackedBatch, half: bool) -> list[torch.Tensor]:
    device = batch.image_index.device.type
    with torch.autocast(device, torch.bfloat16) if half else nullcontext():
        logits = model(batch)
    logits = logits.double()
    logits.square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return [x.detach().double().cpu() for x in (logits, *gradients)]


def assert_close(got: list[torch.Tensor], expected: list[torch.Tensor], share: float) -> None:
    """Each tensor differs by at most a share of the expected one's norm; tiny ones by what is noise."""
    largest = max(float(x.norm()) for x in expected)
    for a, b in zip(got, expected, strict=True):
        assert a.isfinite().all()
        assert float((a - b).norm()) <= share * (float(b.norm()) + 1e-2 * largest)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("half", "share"), [(False, 4e-3), (True, 4e-2)], ids=["float32", "bf16"])
def test_numbers_are_those_of_float64_on_a_cpu(cut_image, name, half, share, device):
    model, batch = make_model(MODELS[name]), make_batch(cut_image)
    expected = logits_and_gradients(copy.deepcopy(model).double(), batch, half=False)
    got = logits_and_gradients(model.to(device), batch.to(device), half)
    assert_close(got, expected, share)


# tests/models/test_compile.py has the same for a CPU.
@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("name", ["heads of 24", "prefix"])
def test_compiled_numbers_are_those_of_float64_on_a_cpu(cut_image, name, device):
    model, batch = make_model(MODELS[name]), make_batch(cut_image)
    expected = logits_and_gradients(copy.deepcopy(model).double(), batch, half=False)
    model.compile_blocks()
    assert_close(logits_and_gradients(model.to(device), batch.to(device), half=True), expected, 4e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_is_the_same_alone_and_among_others(cut_image, device):
    model = make_model(MODELS["heads of 80"]).to(device).eval()
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        together = model(make_batch(cut_image).to(device))
        alone = model(make_batch(cut_image, SHAPES[:1]).to(device))
    torch.testing.assert_close(together[: len(alone)].float(), alone.float(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_image(cut_image, device):
    model = make_model(MODELS["heads of 24"]).to(device)
    batch = make_batch(cut_image).to(device)
    floats = {shape: patches.float() / 255 for shape, patches in batch.patches.items()}
    first = (batch.image_index == 0).nonzero().flatten()
    for shape, slots in batch.slots.items():
        floats[shape][torch.isin(slots, first)] = torch.nan
    fields = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    with torch.autocast(device, torch.bfloat16):
        logits = model(PackedBatch(**{**fields, "patches": floats}))
    assert logits[0].isnan().all()
    assert logits[1:].isfinite().all()
    logits[1:].float().sum().backward()
    gradient = model.blocks[0].get_parameter("mlp.fc1.bias").grad
    assert gradient is not None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["heads of 24", "prefix", "rotary"])
def test_a_batch_without_images_gives_zero_gradients(name, device):
    model = make_model(MODELS[name]).to(device)
    with torch.autocast(device, torch.bfloat16):
        logits = model(PackedBatch.build([[], []], 8).to(device))
    assert logits.shape == (0, 5)
    logits.float().sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("device", DEVICES[1:])
def test_copies_from_pinned_memory_are_whole(cut_image, device):
    batch = make_batch(cut_image)
    pinned = batch.pin_memory()
    assert pinned.image_index.is_pinned()
    copied = pinned.to(device)
    torch.cuda.synchronize()
    for name in ("image_index", "coords", "extents", "grids", "cells", "cu_seqlens"):
        assert torch.equal(getattr(copied, name).cpu(), getattr(batch, name))
    for shape, patches in batch.patches.items():
        assert torch.equal(copied.patches[shape].cpu(), patches)
        assert torch.equal(copied.slots[shape].cpu(), batch.slots[shape])
