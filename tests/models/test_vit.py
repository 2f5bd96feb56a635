"""The model's options, costs, errors and files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from packvit.models import PRESETS, Layout, PackedViT, ViTConfig, load_model, preset, save_model
from packvit.models.encoder.block import Block, before
from packvit.packing import PackedBatch, pack_images

TINY = ViTConfig(width=16, depth=2, heads=2, num_classes=3, patch_buffer=8, pos_grid=(4, 4))


def random_model(config: ViTConfig) -> PackedViT:
    torch.manual_seed(0)
    model = PackedViT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def make_batch(
    cut_image, shapes=((2, 3, 8), (1, 1, 4), (4, 2, 12)), seq_len: int = 16, keep=None
) -> PackedBatch:
    rng = np.random.default_rng(0)
    images = [
        cut_image(rng.integers(0, 256, (r * p, c * p, 3), dtype=np.uint8), p, keep, key=f"image-{r}x{c}")
        for r, c, p in shapes
    ]
    return PackedBatch.build([images], seq_len)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, "heads=5 does not divide width=192"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"pool": "max"}, "pool='max' is not one of mean, map, cls, cls_mean"),
        ({"pool": "cls"}, "pool='cls' needs cls=True"),
        ({"width": 192.0}, "width=192.0 must be of type int"),
        ({"image_std": (1, 0, 1)}, "image_std"),
        ({"image_mean": (0.5,)}, "image_mean=.* must be 3 of float"),
        ({"drop_path": 1.0}, "drop_path=1.0 must lie in"),
        ({"pos_grid": (0, 4)}, "pos_grid"),
        ({"pos_grid": 16}, "pos_grid=16 must be a list of int"),
        ({"pos_grid": None}, "pos_grid=None must be a list of int"),
        ({"pos_grid": (2, 2.5)}, "must be a list of int"),
        ({"pos_embed": "rope_2d", "heads": 32}, "rope_2d.*multiple of 4"),
        ({"rope_coords": "absolute", "heads": 32}, "rope_coords='absolute' needs a multiple of 4"),
        ({"rope_coords": "absolute", "pos_embed": "none"}, "rope_coords='absolute' needs pos_embed="),
        ({"pos_table": "fourier", "width": 6, "heads": 1}, "pos_table='fourier'"),
    ],
)
def test_impossible_configurations_name_the_field(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**fields)


def test_unknown_fields_and_presets_are_named():
    with pytest.raises(ValueError, match="unknown: widht"):
        preset("S", widht=3)
    with pytest.raises(ValueError, match="preset 'XS' is not one of Ti, S, "):
        preset("XS")
    assert all(preset(name).head_dim in (64, 72, 80, 88, 104) for name in PRESETS)
    assert preset("So400m").hidden == 4304
    assert preset("B", pool="mean").pool == "mean"


def test_config_survives_json():
    config = replace(TINY, image_mean=(0.1, 0.2, 0.3), pos_grid=(3, 5))
    assert ViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY, pool="mean", mlp="swiglu"),
        replace(TINY, pool="cls_mean", cls=True, registers=2, rep_size=6),
        replace(TINY, pool="cls", cls=True, parallel=True),
    ],
)
def test_flops_are_those_that_torch_counts(cut_image, config: ViTConfig):
    config = replace(config, pos_embed="none")
    model = PackedViT(config, backend="dense").eval()
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(make_batch(cut_image, shapes=((3, 4, 8),), seq_len=12))
    assert counter.get_total_flops() == config.flops(tokens=12, patch_size=8)


@pytest.mark.parametrize("config", [TINY, replace(TINY, pool="mean", cls=True, registers=2, mlp="swiglu")])
def test_a_batch_costs_what_its_images_cost(cut_image, config: ViTConfig):
    shapes = ((2, 3, 8), (1, 1, 4), (4, 2, 12), (3, 1, 12))
    batch = make_batch(cut_image, shapes, seq_len=20)
    assert config.batch_flops(batch) == sum(config.flops(rows * cols, p) for rows, cols, p in shapes)


def test_attention_pooling_costs_what_its_products_cost():
    without, with_map = replace(TINY, pool="mean"), replace(TINY, pool="map")
    d, n, hidden = 16, 12, 64
    products = (
        n * 2 * d * d + 2 * n * d + 2 * d * d + 2 * d * hidden
    )  # k and v, scores and sums, q and proj, MLP
    assert with_map.flops(n, 8) - without.flops(n, 8) == 2 * products


def test_features_feed_the_head_and_a_model_without_head_returns_them(cut_image):
    model, batch = random_model(TINY).eval(), make_batch(cut_image)
    assert model.head is not None
    features = model.features(batch)
    assert features.shape == (3, 16)
    torch.testing.assert_close(model(batch), model.head(features))
    headless = PackedViT(replace(TINY, num_classes=0))
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head")})
    torch.testing.assert_close(headless.eval()(batch), features)


def test_a_new_model_predicts_nothing_yet(cut_image):
    assert not PackedViT(TINY)(make_batch(cut_image)).any()


@pytest.mark.parametrize("config", [TINY, replace(TINY, cls=True, registers=2, last_norm="none")])
def test_tokens_are_dense_maps_of_each_image(cut_image, config: ViTConfig):
    model, batch = random_model(config).eval(), make_batch(cut_image)
    maps = model.tokens(batch)
    assert [tuple(m.shape) for m in maps] == [(2, 3, 16), (1, 1, 16), (4, 2, 16)]
    if config.pool == "map" and config.last_norm == "tokens" and model.pool.attention is not None:
        one = make_batch(cut_image, shapes=((2, 3, 8),), seq_len=6)
        torch.testing.assert_close(model.tokens(one)[0], maps[0], atol=1e-5, rtol=1e-5)


def test_tokens_refuses_dropped_images_by_name(cut_image):
    batch = make_batch(cut_image, shapes=((2, 3, 8),), keep=np.array([0, 2, 5]))
    with pytest.raises(ValueError, match="image 'image-2x3' keeps 3 of 2x3 tokens"):
        PackedViT(TINY).tokens(batch)


def test_checkpointing_changes_nothing(cut_image):
    batch, grads = make_batch(cut_image), []
    for every in (0, 1, 2):
        model = random_model(replace(TINY, checkpoint_every=every))
        model(batch).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0])


def test_drop_path_takes_whole_images_and_keeps_the_mean(cut_image):
    model = random_model(replace(TINY, drop_path=0.5, depth=2))
    assert [block.drop_path for block in model.blocks if isinstance(block, Block)] == [0.0, 0.5]
    batch = make_batch(cut_image)
    layout = Layout.build(batch.cu_seqlens, batch.image_index, batch.num_images, batch.max_len)
    block = model.blocks[1]
    assert isinstance(block, Block)
    torch.manual_seed(0)
    x = torch.ones(16, 4)
    drawn = [block.draw_keep(x, layout) for _ in range(400)]
    draws = torch.stack([keep for keep in drawn if keep is not None])  # [400, T, 1]
    assert len(draws) == 400
    for i in range(3):
        own = draws[:, layout.owner == i]
        assert (own == own[:, :1]).all()
    assert set(draws.unique().tolist()) == {0.0, 2.0}
    assert draws.mean() == pytest.approx(1, abs=0.1)
    assert block.eval().draw_keep(x, layout) is None


@pytest.mark.parametrize(
    "config", [TINY, replace(TINY, qk_norm="layer", mlp="swiglu", layer_scale=1e-4, norm="rms")]
)
def test_autocast_trains_close_to_float32(cut_image, config: ViTConfig):
    model, batch = random_model(config), make_batch(cut_image)
    full = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    half.float().square().sum().backward()
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, cls=True, pre_norm=True, layer_scale=0.5, drop_path=0.5, pos_embed="rope_2d"),
        replace(TINY, parallel=True, norm="rms", biases=False, pool="mean", drop_path=0.5),
    ],
)
def test_the_residual_stream_has_the_dtype_that_is_asked_for(cut_image, config: ViTConfig):
    batch, results = make_batch(cut_image), []
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        model = random_model(config)
        model.residual_dtype = dtype
        seen: list[torch.dtype] = []
        for module in (*model.blocks, model.norm):
            module.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].dtype))
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(batch).float()
        assert seen == [expected] * (config.depth + 1)
        out.square().sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert [g.dtype for g in grads] == [torch.float32] * len(list(model.parameters()))
        results.append(torch.cat([out.detach().flatten(), *(g.flatten() for g in grads)]))
    # Rounded otherwise, and not by much.
    assert 0 < (results[1] - results[0]).norm() / results[0].norm() < 0.05


def test_embeddings_are_added_in_float32_whatever_the_weights(cut_image):
    model, added = random_model(TINY).bfloat16(), []
    assert model.pos_embed is not None
    for module in (model.patch_embed, model.pos_embed):
        module.register_forward_hook(lambda _, __, out: added.append(out))
    entered = []
    model.blocks[0].register_forward_hook(lambda _, inputs, __: entered.append(inputs[0]))
    batch = make_batch(cut_image)
    model(batch)
    assert [x.dtype for x in added] == [torch.float32] * 2
    own = batch.image_index >= 0
    assert torch.equal(entered[0][own], (added[0] + added[1]).bfloat16()[own])


def test_a_table_beside_rotations_is_both_in_one_model(cut_image):
    batch = make_batch(cut_image)
    turned = random_model(replace(TINY, cls=True, pos_embed="rope_2d", pos_coords="absolute"))
    added = random_model(replace(TINY, cls=True, pos_embed="grid_2d"))
    both = random_model(replace(added.config, rope_coords="absolute"))
    assert both.state_dict().keys() == added.state_dict().keys()
    assert not torch.allclose(both(batch), added(batch))
    both.load_state_dict(turned.state_dict(), strict=False)
    assert not torch.allclose(both(batch), turned(batch))
    assert both.pos_embed is not None
    torch.nn.init.zeros_(both.pos_embed.table)  # pyright: ignore[reportArgumentType]
    assert torch.equal(both(batch), turned(batch))


def test_the_norm_before_attention_goes_no_further_than_its_readers():
    x = torch.randn(5, 16)
    _, _, _, side = before(Block(TINY), x, None)
    assert side is None
    block = Block(replace(TINY, parallel=True))
    _, _, _, side = before(block, x, None)
    torch.testing.assert_close(side, block.mlp(block.norm1(x)))


def test_save_and_load_are_inverse(cut_image, tmp_path):
    config = replace(TINY, cls=True, registers=2, rope_coords="absolute")
    model, batch = random_model(config).eval(), make_batch(cut_image)
    folder = save_model(model, tmp_path / "a" / "b")
    stored = json.loads((folder / "config.json").read_text())
    assert stored["model_type"] == "packvit"
    assert stored["format_version"] == 1
    for path in (folder, str(folder), folder / "model.safetensors"):
        loaded = load_model(path)
        assert not loaded.training
        assert loaded.config == model.config
        assert torch.equal(loaded(batch), model(batch))


def test_fields_may_be_replaced_at_loading(tmp_path):
    save_model(PackedViT(TINY), tmp_path)
    assert load_model(tmp_path, drop_path=0.1).config.drop_path == 0.1
    with pytest.raises(ValueError, match=r"head.bias has shape \(3,\), head.bias needs \(5,\)"):
        load_model(tmp_path, num_classes=5)
    with pytest.raises(ValueError, match="has 2 blocks: depth=3 must be at most as many"):
        load_model(tmp_path, depth=3)
    with pytest.raises(ValueError, match="unknown: colour"):
        load_model(tmp_path, colour="red")


def test_files_that_are_no_model_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model.safetensors does not exist"):
        load_model(tmp_path)
    for name in ("a.safetensors", "a.npz"):
        (tmp_path / name).write_bytes(b"not a model at all")
        with pytest.raises(ValueError, match="is not a readable"):
            load_model(tmp_path / name)
    save_model(PackedViT(TINY), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "packvit", "format_version": 99}')
    with pytest.raises(ValueError, match="format version 99"):
        load_model(tmp_path)


def test_a_batch_of_padding_alone_gives_no_rows():
    batch = PackedBatch.build([[], []], 4)
    assert PackedViT(TINY)(batch).shape == (0, 3)
    assert PackedViT(replace(TINY, cls=True, pool="cls"))(batch).shape == (0, 3)


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, pool="mean", pos_embed="grid_2d"), replace(TINY, pos_embed="rope_2d", registers=1)],
)
def test_weights_may_be_half_precision(cut_image, config: ViTConfig):
    model, batch = random_model(config).eval(), make_batch(cut_image)
    full = model(batch)
    half = model.bfloat16()(batch)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.06, rtol=0.06)


@pytest.mark.parametrize("prefix", [{}, {"cls": True, "registers": 2}])
def test_outputs_are_all_that_the_other_methods_give(cut_image, prefix):
    model = random_model(replace(TINY, **prefix))
    batch = make_batch(cut_image)
    logits, features, tokens = model.outputs(batch)
    assert torch.equal(logits, model(batch))
    assert torch.equal(features, model.features(batch))
    flat = torch.cat([grid.flatten(0, 1) for grid in model.tokens(batch)])
    assert torch.equal(tokens[batch.image_index >= 0], flat)


def test_a_model_packs_a_list_of_images_by_itself():
    model = random_model(TINY).eval()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((16, 24), (32, 8))]
    batch = pack_images(images, 8)
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    torch.testing.assert_close(model(tensors), model(batch), rtol=0, atol=0)
    torch.testing.assert_close(model.features(images), model.features(batch), rtol=0, atol=0)
    torch.testing.assert_close(model.outputs(images).tokens, model.outputs(batch).tokens, rtol=0, atol=0)
    assert [list(one.shape[:2]) for one in model.tokens(images, patch_size=4)] == [[4, 6], [8, 2]]
    asked = model(images, patch_size=[4, 8], resolution=16)
    torch.testing.assert_close(asked, model(pack_images(images, [4, 8], 16)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="those of a PackedBatch have their own"):
        model(batch, patch_size=4)
    with pytest.raises(ValueError, match="images must be a list"):
        model(images[0])
