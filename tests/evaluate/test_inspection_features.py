"""Features by layer: of the same images at every setting, whatever else is in the forward pass."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from packvit.data import ClassTarget, FetchConfig
from packvit.evaluate.inspection import features as module
from packvit.evaluate.inspection.features import Cells, Gathered, limit_tokens, run_setting
from packvit.evaluate.inspection.images import InspectedImages, Shown, show_at
from packvit.evaluate.inspection.taps import places
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch

SETTINGS = [Setting(4, 24), Setting(8, 24), Setting(8, 40)]


@pytest.fixture(scope="session")
def model() -> PackedViT:
    torch.manual_seed(0)
    config = ViTConfig(width=16, depth=2, heads=2, num_classes=10, patch_buffer=8, cls=True, pool="cls")
    model = PackedViT(config, backend="sdpa").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="session")
def images(digits_set) -> InspectedImages:
    return InspectedImages([str(digits_set / "val")], 11, ClassTarget(classes=10), FetchConfig())


@pytest.fixture(scope="session")
def shown(images) -> list[Shown]:
    return [image for group in images.minibatches(SETTINGS, 4) for image in group]


def test_minibatches_hold_each_image_once_in_nearly_equal_parts(images, shown):
    sizes = [len(group) for group in images.minibatches(SETTINGS, 4)]
    assert sizes == [6, 5]
    assert [image.header.key for image in shown] == [header.key for header in images.headers[:11]]
    assert len({image.header.key for image in shown}) == 11


def test_images_are_shown_as_their_setting_says(images, shown):
    for image in shown[:3]:
        for setting, view in zip(SETTINGS, image.views, strict=True):
            assert view.grid == setting.view(image.header.native_size).grid
            alone = show_at(images.pixels(image.header), setting, image.header.key)
            assert all(np.array_equal(view.patches[shape], alone.patches[shape]) for shape in view.patches)


@torch.inference_mode()
def test_images_together_give_what_each_gives_alone(model, shown, monkeypatch):
    cells = [Cells.of(image, 8) for image in shown]
    for s in range(len(SETTINGS)):
        views = [image.views[s] for image in shown]
        together = run_setting(model, views, cells, nullcontext())
        with monkeypatch.context() as patch:
            patch.setattr(module, "TOKENS_AT_ONCE", 1)
            alone = run_setting(model, views, cells, nullcontext())
        assert (together.num_tokens, together.flops) == (alone.num_tokens, alone.flops)
        torch.testing.assert_close(together.logits, alone.logits, atol=1e-4, rtol=1e-4)
        for name in places(model):
            torch.testing.assert_close(together.pooled[name], alone.pooled[name], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(together.tokens[name], alone.tokens[name], atol=1e-4, rtol=1e-4)
        batch = PackedBatch.build([views[:1]], len(views[0].coords))
        torch.testing.assert_close(alone.features[:1], model.features(batch))
        # The last layer's stream is not yet normalised.
        tokens = model.norm(alone.tokens["2 mlp"][: len(cells[0].chosen)])
        if views[0].grid == cells[0].grid:
            whole = model.tokens(batch)[0].flatten(0, 1)[cells[0].chosen]
            torch.testing.assert_close(tokens, whole, atol=1e-4, rtol=1e-4)


def test_groups_keep_the_order_and_the_limit(shown):
    views = [image.views[0] for image in shown]
    groups = list(limit_tokens(views, 100))
    assert [view for group in groups for view in group] == views
    assert all(len(group) == 1 or sum(len(v.coords) for v in group) <= 100 for group in groups)
    assert list(limit_tokens([], 100)) == []


def test_cells_are_those_of_the_coarsest_setting(shown):
    for image in shown:
        cells = Cells.of(image, 5)
        assert cells.grid == tuple(min(view.grid[axis] for view in image.views) for axis in (0, 1))
        assert len(cells.chosen) == min(5, cells.grid[0] * cells.grid[1])
        assert cells.chosen.tolist() == sorted(set(cells.chosen.tolist()))


def test_resampling_keeps_constants_and_what_has_the_grid():
    cells = Cells((2, 3), torch.arange(6))
    own = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cells.read(own), own.flatten(0, 1))
    torch.testing.assert_close(cells.read(torch.full((8, 9, 4), 2.5)), torch.full((6, 4), 2.5))
    ramp = torch.arange(12.0)[None, :, None].expand(4, 12, 1)
    rising = cells.read(ramp).view(2, 3)
    assert (rising.diff(dim=1) > 3).all()
    torch.testing.assert_close(rising[0], rising[1])


def test_a_setting_is_like_itself_everywhere(model, images):
    gathered = Gathered(model, 2)
    for group in images.minibatches([SETTINGS[0]] * 2, 4):
        gathered.add(model, group, nullcontext())
    for cka in (*gathered.pooled.values(), *gathered.tokens.values()):
        torch.testing.assert_close(cka.result(), torch.ones(2, 2, dtype=torch.float64))
    assert gathered.labels.shape == (11,)
    assert gathered.features.shape == (2, 11, 16)
    assert gathered.tokens_per_image[0] == gathered.tokens_per_image[1]
