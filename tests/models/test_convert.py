"""Imported weights give what their own implementations gave, with all patch sizes in one pack."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from packvit.models import PackedViT, export_model, load_model, preset, save_model
from packvit.packing import PackedBatch

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.name.split(".")[0] for path in GOLDEN.glob("*.expected.npz"))


def load(name: str) -> PackedViT:
    path = next(GOLDEN.glob(f"{name}.weights.*"))
    return load_model(path) if path.suffix == ".npz" else load_model(path, heads=4)


def cases(name: str):
    """(image [H, W, 3], patch size, {output: expected}) for every image and patch size of a golden file."""
    with np.load(GOLDEN / f"{name}.expected.npz") as file:
        data = {key: file[key] for key in file.files}
    if name.startswith("big_vision"):
        for key in (k for k in data if k.startswith("logits")):
            side = int(key.split("=")[1])
            for i, image in enumerate(data["image"]):
                features = data[key.replace("logits", "pre_logits")][i]
                yield image, 120 // side, {"logits": data[key][i], "features": features}
    elif name == "timm_flexivit":
        yield data["image"], 16, {"logits": data["logits"][0]}
    else:
        for key in (k for k in data if k.startswith("image_")):
            case = key.removeprefix("image_")
            patch = re.search(r"_p(\d+)", case)
            outputs = {k.removesuffix("_" + case): v[0] for k, v in data.items() if k.endswith("_" + case)}
            yield (
                data[key],
                int(patch[1]) if patch else 16,
                {k: v for k, v in outputs.items() if k != "image"},
            )


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_golden_outputs_with_every_patch_size_in_one_pack(cut_image, name: str):
    model = load(name)
    images, patch_sizes, expected = zip(*cases(name), strict=True)
    cut = [cut_image(image, p) for image, p in zip(images, patch_sizes, strict=True)]
    seq_len = max(c.num_tokens for c in cut)
    one_row = PackedBatch.build([cut], sum(c.num_tokens for c in cut))
    own_rows = PackedBatch.build([[c] for c in cut], seq_len)
    for batch in (one_row, own_rows):
        got = {"logits": model(batch), "features": model.features(batch)}
        got["pooler_output"] = got["features"]
        got["last_hidden_state"] = [t.flatten(0, 1) for t in model.tokens(batch)]
        for i, outputs in enumerate(expected):
            for key, value in outputs.items():
                torch.testing.assert_close(got[key][i], torch.from_numpy(value), atol=5e-5, rtol=0)


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.weights.npz") as file:
        return {key: file[key] for key in file.files}


def assert_same_model(a: PackedViT, b: PackedViT) -> None:
    assert a.config == b.config
    other = b.state_dict()
    assert all(torch.equal(tensor, other[key]) for key, tensor in a.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/img/", "img/"])
def test_big_vision_prefixes_and_company(tmp_path, prefix: str):
    arrays = {
        prefix + key.removeprefix("params/"): value for key, value in read("big_vision_flexivit_map").items()
    }
    if prefix:
        arrays |= {"params/txt/head/bias": np.zeros(3, np.float32), "opt/state/step": np.array(7)}
    np.savez(tmp_path / "model.npz", allow_pickle=False, **arrays)
    assert_same_model(load_model(tmp_path / "model.npz"), load("big_vision_flexivit_map"))


def test_big_vision_blocks_stacked_by_scan(tmp_path):
    arrays, stacked = read("big_vision_flexivit_gap"), {}
    for key in arrays:
        if "encoderblock_0" in key:
            both = [arrays[key.replace("block_0", f"block_{i}")] for i in range(2)]
            stacked[key.replace("encoderblock_0", "encoderblock")] = np.stack(both)
        elif "encoderblock_" not in key:
            stacked[key] = arrays[key]
    np.savez(tmp_path / "scan.npz", allow_pickle=False, **stacked)
    assert_same_model(load_model(tmp_path / "scan.npz"), load("big_vision_flexivit_gap"))


def test_naflex_of_big_vision_embeds_flat_patches(tmp_path):
    """Its rows are (row, col, channel) of a patch, and its table of positions is no sequence."""
    arrays = read("big_vision_flexivit_map")
    kernel, table = arrays["params/embedding/kernel"], arrays["params/pos_embedding"]
    side = round(table.shape[1] ** 0.5)
    arrays["params/embedding/kernel"] = kernel.reshape(-1, kernel.shape[-1])
    arrays["params/pos_embedding"] = table.reshape(side, side, -1)
    np.savez(tmp_path / "naflex.npz", allow_pickle=False, **arrays)
    model, expected = load_model(tmp_path / "naflex.npz"), load("big_vision_flexivit_map")
    assert model.config == replace(expected.config, patch_operator="bilinear_antialias")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())


def test_the_older_naming_with_a_position_for_cls_and_pre_logits(tmp_path, cut_image):
    arrays = {}
    for key, value in read("big_vision_flexivit_tok").items():
        key = (
            key.removeprefix("params/")
            .replace("LayerNorm_1", "LayerNorm_2")
            .replace("MlpBlock_0", "MlpBlock_3")
        )
        arrays[key.replace("Attention_0", "Attention_1")] = value
    rng = np.random.default_rng(0)
    cls_pos = rng.normal(size=(1, 1, 48)).astype(np.float32)
    arrays["Transformer/posembed_input/pos_embedding"] = np.concatenate(
        [cls_pos, arrays.pop("pos_embedding")], 1
    )
    arrays["pre_logits/kernel"] = rng.normal(size=(48, 48)).astype(np.float32)
    arrays["pre_logits/bias"] = np.zeros(48, np.float32)
    np.savez(tmp_path / "old.npz", allow_pickle=False, **arrays)
    old, new = load_model(tmp_path / "old.npz"), load("big_vision_flexivit_tok")
    assert old.prefix is not None
    assert new.prefix is not None
    torch.testing.assert_close(old.prefix, new.prefix + torch.from_numpy(cls_pos[0]))
    assert old.config.rep_size == 48


def test_big_vision_without_a_table_has_sincos2d(tmp_path):
    arrays = {
        key: value for key, value in read("big_vision_flexivit_gap").items() if "pos_embedding" not in key
    }
    np.savez(tmp_path / "model.npz", allow_pickle=False, **arrays)
    config = load_model(tmp_path / "model.npz").config
    assert (config.pos_table, config.pos_combine, config.pos_coords) == ("sinusoidal", "stack", "absolute")


@pytest.mark.parametrize("name", NAMES)
def test_our_own_folder_keeps_an_imported_model(tmp_path, name: str):
    model = load(name)
    assert_same_model(load_model(save_model(model, tmp_path)), model)


def test_heads_default_to_64_channels_and_configs_beside_the_weights_are_read(tmp_path):
    source = GOLDEN / "hf_siglip2_naflex.weights.safetensors"
    assert load_model(source).config.heads == 1
    (tmp_path / "model.safetensors").write_bytes(source.read_bytes())
    config = '{"num_attention_heads": 4, "layer_norm_eps": 1e-5, "hidden_act": "gelu_pytorch_tanh"}'
    (tmp_path / "config.json").write_text(config)
    loaded = load_model(tmp_path).config
    assert (loaded.heads, loaded.norm_eps, loaded.mlp) == (4, 1e-5, "gelu_tanh")
    assert load_model(tmp_path, heads=2).config.heads == 2


def test_heads_of_known_sizes_are_theirs(tmp_path):
    model = PackedViT(
        preset("So400m", depth=1, mlp="gelu", qk_norm="none", patch_operator="bicubic_antialias")
    )
    export_model(model, tmp_path / "so400m.safetensors")
    assert load_model(tmp_path / "so400m.safetensors").config.heads == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "blocks.0.attn.bonus": torch.zeros(1)}, r"unknown keys: blocks\.0\.attn\.bonus"),
        (lambda t: {**t, "head.weight": torch.zeros(10, 7)}, r"head\.weight has shape \(10, 7\)"),
        (
            lambda t: {**t, "patch_embed.proj.weight": torch.zeros(48, 4, 16, 16)},
            r"patch_embed\.proj\.weight has shape",
        ),
        (lambda t: {**t, "pos_embed": torch.zeros(1, 223, 48)}, r"pos_embed has 223 positions"),
        (
            lambda t: {k: v for k, v in t.items() if k != "blocks.1.norm1.weight"},
            r"lacks blocks\.1\.norm1\.weight",
        ),
        (lambda t: {"encoder.foo": torch.zeros(1)}, r"neither packvit, big_vision, timm nor Hugging Face"),
    ],
)
def test_what_does_not_fit_is_named_in_one_sentence(tmp_path, change, message: str):
    tensors = change(load_file(GOLDEN / "timm_flexivit.weights.safetensors"))
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path / "bad.safetensors", heads=4)
    assert "\n" not in str(error.value)
