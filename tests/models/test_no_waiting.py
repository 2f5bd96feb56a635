"""A training step neither waits for the device nor copies to it, on tensors that have no values.

Tensors on PyTorch's meta device have shapes and no values: whoever reads one, or needs a shape that depends
on values, fails, where on a GPU it would wait. Copies from the CPU and indexing by masks are looked for by
name.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from packvit.models import BACKENDS, PackedViT, Segments, ViTConfig
from packvit.models import vit as vit_module
from packvit.models.resample import pi_matrix
from packvit.packing import PackedBatch
from packvit.packing.batch.packed_batch import map_leaves

BASE = ViTConfig(width=32, depth=2, heads=2, num_classes=3, patch_buffer=8, pos_grid=(4, 5))
CONFIGS = {
    "map": BASE,
    "mean_drop_path": replace(BASE, pool="mean", drop_path=0.3, biases=False, parallel=True),
    "cls_rope": replace(BASE, pool="cls", cls=True, registers=2, pos_embed="rope_2d", pre_norm=True),
    "cls_mean_grid": replace(
        BASE, pool="cls_mean", cls=True, pos_embed="grid_2d", last_norm="pooled", checkpoint_every=1
    ),
    "absolute_grid": replace(
        BASE, pos_embed="grid_2d", pos_coords="absolute", pos_resize="bicubic", rope_coords="fractional"
    ),
    "fourier": replace(BASE, pos_table="fourier", pos_coords="fractional_aspect"),
    "sinusoidal": replace(BASE, pos_table="sinusoidal", pos_combine="stack", layer_scale=0.1, norm="rms"),
}
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero", "equal")


class NoWaiting(TorchDispatchMode):
    """Fails where an operation would wait for a device or copy to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        leaves = tree_leaves((args, kwargs or {}))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        assert name.strip("_") not in {n.strip("_") for n in WAITING}, f"{func} waits for the device"
        assert "cpu" not in devices, f"{func} reads a tensor of the CPU"
        if name in ("index", "index_put", "index_put_"):
            indices = [i for i in args[1] if i is not None]
            assert not any(i.dtype == torch.bool for i in indices), f"{func} by a mask waits for the device"
        return func(*args, **(kwargs or {}))


class NoNumbers(TorchFunctionMode):
    """Fails where a tensor is made of Python's numbers, which are then copied to its device."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor, torch.asarray), f"{func} of {args} is copied"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_autocast(monkeypatch) -> None:
    """There is no autocast on the meta device: weights are half precision instead."""
    real = torch.autocast

    def autocast(kind: str, *arguments, **options):
        return real("cpu" if kind == "meta" else kind, *arguments, **options)

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)


def make_step(cut_image, config: ViTConfig, backend: str, monkeypatch) -> Callable[[], None]:
    """Forward, loss and backward of a model and a batch without values, as far as a step repeats them."""
    monkeypatch.setattr(vit_module, "choose_backend", lambda *_: backend)
    with torch.device("meta"):
        model = PackedViT(config).to(torch.bfloat16)
    pixels = [np.zeros((2 * p, 3 * p, 3), np.uint8) for p in (4, 8, 12)]
    images = [[cut_image(x, p)] for x, p in zip(pixels, (4, 8, 12), strict=True)]
    batch = map_leaves(PackedBatch.build(images, 8), Tensor, partial(Tensor.to, device="meta"))
    labels = torch.empty(3, dtype=torch.int64, device="meta")

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(batch).float(), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.device.type == "meta" for p in model.parameters())

    pi_matrix.cache_clear()
    return step


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_neither_waits_for_the_device_nor_copies_to_it(cut_image, monkeypatch, name: str):
    step = make_step(cut_image, CONFIGS[name], "varlen", monkeypatch)
    step()  # matrices of the patch sizes are copied once
    with NoWaiting(), NoNumbers():
        step()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.clone().__setitem__(x > 0, 1.0),
        lambda x: x + torch.tensor([1.0, 2.0]).to(x.device),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.as_tensor(2.0, device=x.device),
    ],
)
def test_the_check_finds_what_waits(wait: Callable[[Tensor], Any]):
    x = torch.empty(2, device="meta")
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NoWaiting(), NoNumbers():
        wait(x)


def test_lengths_and_patch_sizes_wait_for_nothing(cut_image):
    batch = PackedBatch.build([[cut_image(np.zeros((8, 16, 3), np.uint8), p)] for p in (4, 8)], 8)
    far = map_leaves(batch, Tensor, partial(Tensor.to, device="meta"))
    with NoWaiting(), NoNumbers():
        assert far.image_lengths().shape == far.patch_sizes.shape == (2,)


def test_plans_of_varlen_and_flex_wait_for_nothing():
    offsets = torch.empty(5, dtype=torch.int32, device="meta")
    with NoWaiting(), NoNumbers():
        for name in ("varlen", "flex"):
            assert Segments.build(offsets, 16, name, total=40).backend in BACKENDS
