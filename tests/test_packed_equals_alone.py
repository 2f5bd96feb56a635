"""The law of packing: an image's output and gradient do not know what else is in the batch."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from packvit.data import pack_images
from packvit.models import PackedViT, ViTConfig
from packvit.packing import PackedBatch, PackedImage

SIZES = (6, 8, 10, 12, 15, 16, 24, 32)
BASE = ViTConfig(width=32, depth=2, heads=4, num_classes=5, patch_buffer=16, pos_grid=(5, 7))
CONFIGS = {
    "map": BASE,
    "mean_nobias_swiglu": replace(BASE, pool="mean", biases=False, mlp="swiglu", qk_norm="layer"),
    "map_vit22b": replace(BASE, norm="rms", qkv_biases=False),
    "cls_registers": replace(BASE, pool="cls", cls=True, registers=3, qk_norm="none", layer_scale=0.3),
    "cls_mean_grid": replace(
        BASE, pool="cls_mean", cls=True, pos_embed="grid_2d", last_norm="pooled", rep_size=6
    ),
    "registers_map_rope": replace(BASE, registers=2, pos_embed="rope_2d", parallel=True, pre_norm=True),
    "grid_and_rope": replace(BASE, cls=True, pos_embed="grid_2d", rope_coords="fractional_aspect"),
    "fourier_natural": replace(BASE, pos_table="fourier", patch_operator="natural", checkpoint_every=1),
    "absolute_product": replace(BASE, pos_coords="absolute", pos_combine="product", pool="mean"),
    "aspect_stack": replace(
        BASE, pos_table="sinusoidal", pos_coords="fractional_aspect", pos_combine="stack"
    ),
}


def make_model(config: ViTConfig, dtype: torch.dtype = torch.float64) -> PackedViT:
    """Every parameter random, so that no zero initialisation hides a path."""
    torch.manual_seed(0)
    model = PackedViT(config).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def make_images(cut_image, drop: bool, seed: int = 0):
    """One image a patch size, one of a single token and one that fills a sequence of 48 slots."""
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(1, 6)), int(rng.integers(1, 6)), p) for p in SIZES] + [(1, 1, 8), (6, 8, 6)]
    images = []
    for rows, cols, p in shapes:
        pixels = rng.integers(0, 256, (rows * p, cols * p, 3), dtype=np.uint8)
        count = rows * cols
        keep = np.sort(rng.permutation(count)[: max(1, round(count * 0.6))]) if drop and count < 48 else None
        images.append(cut_image(pixels, p, keep))
    return images


def make_mixed_image(cut_image, pixels: np.ndarray, is_coarse: np.ndarray, keep: slice) -> PackedImage:
    """One image of two patch sizes over cells of 8 pixels.

    Args:
        is_coarse: bool [rows, cols] of the grid of 16 pixels; True has one patch of 16 pixels, False four of
            8 there.
        keep: the tokens that stay, of each size.
    """
    fine, coarse = cut_image(pixels, 8), cut_image(pixels, 16)
    is_fine = ~is_coarse.repeat(2, 0).repeat(2, 1).flatten()
    patches = {(8, 8): fine.patches[8, 8][is_fine], (16, 16): coarse.patches[16, 16][is_coarse.flatten()]}
    coords = [fine.coords[is_fine], 2 * coarse.coords[is_coarse.flatten()]]
    extents = [np.full_like(c, extent) for c, extent in zip(coords, (1, 2), strict=True)]
    return replace(
        fine,
        patches={shape: values[keep] for shape, values in patches.items()},
        coords=np.concatenate([c[keep] for c in coords]),
        extents=np.concatenate([e[keep] for e in extents]),
    )


def pack(images, seq_len: int = 48) -> PackedBatch:
    """In order, opening a row when the last is full; an empty row in the middle and one at the end."""
    rows: list[list] = [[]]
    for image in images:
        if sum(i.num_tokens for i in rows[-1]) + image.num_tokens > seq_len:
            rows.append([])
        rows[-1].append(image)
    return PackedBatch.build([rows[0], [], *rows[1:], []], seq_len)


def run(model: PackedViT, batch: PackedBatch):
    model.zero_grad()
    out = model(batch)
    out.square().sum().backward()
    return out.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def assert_the_pack_is_each_alone(model: PackedViT, images) -> None:
    out, grads = run(model, pack(images))
    assert set(grads) == {k for k, _ in model.named_parameters()}
    alone = [run(model, PackedBatch.build([[image]], image.num_tokens)) for image in images]
    torch.testing.assert_close(out, torch.cat([o for o, _ in alone]), atol=1e-9, rtol=0)
    for key, grad in grads.items():
        total = torch.stack([g[key] for _, g in alone]).sum(0)
        # Exact zeros (a key's bias shifts all scores alike) have no scale of their own.
        error = (grad - total).abs().max() / max(total.abs().max(), 1e-3)
        assert error < 1e-8, key


@pytest.mark.parametrize(("name", "drop"), list(product(CONFIGS, (False, True))))
def test_outputs_and_gradients_of_the_pack_are_those_alone(cut_image, name: str, drop: bool):
    assert_the_pack_is_each_alone(make_model(CONFIGS[name]), make_images(cut_image, drop))


@pytest.mark.parametrize(("name", "drop"), list(product(CONFIGS, (False, True))))
def test_patches_of_several_sizes_in_one_image_are_the_same_alone(cut_image, name: str, drop: bool):
    rng = np.random.default_rng(2)
    model, images = make_model(CONFIGS[name]), make_images(cut_image, drop)
    pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    is_coarse = rng.permutation(12).reshape(3, 4) < 7
    mixed = make_mixed_image(cut_image, pixels, is_coarse, slice(None, None, 2 if drop else 1))
    assert mixed.num_tokens == (10 + 4 if drop else 5 * 4 + 7)
    assert_the_pack_is_each_alone(model, [*images[:4], mixed, *images[4:]])
    # The extents matter: without them the same patches would stand elsewhere.
    with torch.inference_mode():
        out, elsewhere = (
            model(PackedBatch.build([[image]], 30)) for image in (mixed, replace(mixed, extents=None))
        )
    assert (out - elsewhere).abs().max() > 1e-6
    with pytest.raises(ValueError, match=f"image 0 keeps {mixed.num_tokens} of 6x8 tokens"):
        model.tokens(pack([mixed]))


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].pos_coords != "absolute"])
def test_patches_that_cover_several_cells_stand_where_a_coarser_grid_has_them(cut_image, name: str):
    model = make_model(CONFIGS[name])
    pixels = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    over_cells = make_mixed_image(cut_image, pixels, np.ones((3, 4), bool), slice(None))
    (out, grads), (expected, expected_grads) = (
        run(model, pack([image])) for image in (over_cells, cut_image(pixels, 16))
    )
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)
    for key, grad in expected_grads.items():
        torch.testing.assert_close(grads[key], grad, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("precision", ["float32", "float64", "autocast"])
@pytest.mark.parametrize("name", CONFIGS)
def test_perturbing_one_image_changes_no_bit_of_another(cut_image, name: str, precision: str):
    model = make_model(CONFIGS[name], torch.float64 if precision == "float64" else torch.float32)
    images = make_images(cut_image, drop=True)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        before = model(pack(images))
        for i in (0, 3, len(images) - 1):
            changed = list(images)
            changed[i] = replace(images[i], patches={s: 255 - p for s, p in images[i].patches.items()})
            after = model(pack(changed))
            others = torch.arange(len(images)) != i
            assert torch.equal(before[others], after[others])
            assert not torch.equal(before[i], after[i])


@pytest.mark.parametrize("name", CONFIGS)
def test_nan_in_padding_reaches_nothing(cut_image, name: str):
    model = make_model(CONFIGS[name])
    batch = pack(make_images(cut_image, drop=True))
    padding = torch.nonzero(batch.image_index < 0).flatten()
    patches = {shape: model.patch_embed.normalise(v) for shape, v in batch.patches.items()}

    def run_with(value: float):
        """Padding slots get patches of this value, and embeddings of this value on top."""
        rows = torch.full((len(padding), 8 * 8 * 3), value, dtype=torch.float64)
        dirty = replace(
            batch,
            patches={**patches, (8, 8): torch.cat([patches[8, 8], rows])},
            slots={**batch.slots, (8, 8): torch.cat([batch.slots[8, 8], padding])},
        )
        hook = model.patch_embed.register_forward_hook(
            lambda module, args, out: out.masked_fill(~args[2][:, None], value)
        )
        try:
            return run(model, dirty)
        finally:
            hook.remove()

    (out, grads), (clean, clean_grads) = run_with(torch.nan), run_with(0.0)
    assert torch.equal(out, clean)
    assert all(torch.equal(grads[key], clean_grads[key]) for key in clean_grads)
    torch.testing.assert_close(out, run(model, batch)[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_order_in_the_pack_does_not_matter(cut_image, name: str):
    model = make_model(CONFIGS[name])
    images = make_images(cut_image, drop=True)
    order = np.random.default_rng(1).permutation(len(images))
    with torch.inference_mode():
        out, shuffled = model(pack(images)), model(pack([images[i] for i in order], seq_len=50))
    torch.testing.assert_close(shuffled, out[torch.from_numpy(order)], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_offsets_filled_up_with_empty_segments_change_no_bit(cut_image, name: str):
    model = make_model(CONFIGS[name])
    batch = pack(make_images(cut_image, drop=True))
    offsets = batch.cu_seqlens
    for backend in ("sdpa", "dense"):
        model.backend = backend
        out, grads = run(model, batch)
        filled, filled_grads = run(
            model, replace(batch, cu_seqlens=torch.cat([offsets, offsets[-1:].expand(7)]))
        )
        assert torch.equal(filled, out)
        assert all(torch.equal(filled_grads[key], grad) for key, grad in grads.items())


def test_every_backend_of_the_cpu_gives_the_same_numbers(cut_image):
    model = make_model(BASE)
    batch = pack(make_images(cut_image, drop=True))
    model.backend = "dense"
    dense, dense_grads = run(model, batch)
    model.backend = "sdpa"
    sdpa, grads = run(model, batch)
    torch.testing.assert_close(sdpa, dense, atol=1e-10, rtol=0)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, dense_grads[key], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_of_several_rows_is_the_same_alone(cut_image, name: str):
    model = make_model(CONFIGS[name])
    long, *others = sorted(make_images(cut_image, drop=True), key=lambda i: -i.num_tokens)
    rows = [[other] for other in others if other.num_tokens <= 20]
    batch = PackedBatch.build([*rows[:2], [long], *rows[2:]], 20, min_sequences=len(rows) + 5)
    assert batch.max_len == long.num_tokens > 20
    out, _ = run(model, batch)
    alone, _ = run(model, PackedBatch.build([[long]], long.num_tokens))
    torch.testing.assert_close(out[2:3], alone, atol=1e-9, rtol=0)


def test_dense_maps_stand_in_the_order_of_the_images_whatever_the_packer_did(cut_image):
    rng = np.random.default_rng(0)
    sizes = [(32, 64), (64, 64), (32, 64), (16, 16), (48, 16)]
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sizes]
    torch.manual_seed(0)
    model = PackedViT(ViTConfig(width=32, depth=2, heads=2, num_classes=0)).double().eval()
    batch = pack_images(images, 16, seq_len=20)
    assert batch.image_index[batch.image_index >= 0].diff().min() < 0  # the packer has reordered them
    for packed, image in zip(model.tokens(batch), images, strict=True):
        (alone,) = model.tokens(pack_images([image], 16))
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-9)
