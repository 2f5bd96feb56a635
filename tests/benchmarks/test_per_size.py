"""Models of benchmarks/per_size.py: at first the common one; then each size learns from its own images."""

import numpy as np
import pytest
import torch
from per_size import KINDS
from replication import PATCHES

from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch, pack_images

CONFIG = ViTConfig(width=32, depth=2, heads=2, num_classes=5, patch_buffer=16, registers=1)


def make_model(kind: type[PackedViT]) -> PackedViT:
    torch.manual_seed(0)
    model = kind(CONFIG)
    assert model.head is not None
    torch.nn.init.ones_(model.head.weight)  # zeros would hide everything
    return model


def make_batch(patches: tuple[int, ...]) -> PackedBatch:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in patches]
    return pack_images(images, list(patches), resolution=40, seq_len=128)


def own_values(model: PackedViT) -> dict[str, torch.nn.Parameter]:
    """Parameters of each patch size by name, which ends with the size's place."""
    plain = dict(PackedViT(CONFIG).named_parameters())
    return {name: p for name, p in model.named_parameters() if name not in plain}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_model_is_the_common_one_to_the_bit(kind):
    batch = make_batch((16, 4, 8, 12, 6, 8))
    with torch.no_grad():
        torch.testing.assert_close(
            make_model(KINDS[kind])(batch), make_model(PackedViT)(batch), rtol=0, atol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_a_patch_size_learn_from_its_images_alone(kind):
    model = make_model(KINDS[kind])
    model(make_batch((6, 12, 6))).square().sum().backward()
    own = own_values(model)
    assert own
    for name, parameter in own.items():
        assert parameter.ndim == 1
        assert parameter.grad is not None
        assert parameter.grad.any() == (PATCHES[int(name.split(".")[-1])] in (6, 12)), name


def test_another_patch_size_is_refused():
    with pytest.raises(ValueError, match=r"patch sizes \[7, 8\]: known are"):
        make_model(KINDS["own-norms"])(make_batch((8, 7)))
