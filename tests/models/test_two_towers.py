"""Texts are packed as images are, and towers of other projects give what their own code gives."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from packvit.data import pack_images
from packvit.models import (
    PackedText,
    PackedViT,
    TextConfig,
    TextTower,
    TwoTowers,
    TwoTowersConfig,
    ViTConfig,
    has_text_tower,
    load_model,
    load_two_towers,
    save_model,
    save_two_towers,
)
from packvit.packing import PackedBatch

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = TextConfig(width=32, depth=2, heads=4, vocab_size=40, max_tokens=12, embed_dim=6)
IMAGE = ViTConfig(width=16, depth=1, heads=2, num_classes=6, patch_buffer=8)
TOWERS = TwoTowersConfig(image=IMAGE, text=TEXT)
TEXTS = [[3, 1, 4], [7], [39, 0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [3, 1, 4]]


def make_tower(config: TextConfig) -> TextTower:
    """Every parameter random, so that no zero initialisation hides a path."""
    torch.manual_seed(0)
    tower = TextTower(config).double()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower


@pytest.mark.parametrize(
    "config",
    [TEXT, replace(TEXT, pool="last", embed_dim=0, qk_norm="none", mlp="swiglu")],
    ids=["map", "last"],
)
def test_packed_text_equals_text_alone(config):
    """Outputs and gradients; position embeddings count from each text's start."""
    tower = make_tower(config)
    together = tower(PackedText.build(TEXTS))
    assert together.shape == (4, config.feature_dim)
    alone = [tower(PackedText.build([text]))[0] for text in TEXTS]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-12)
    torch.testing.assert_close(together[0], together[3], rtol=0, atol=1e-12)
    weights = torch.arange(together.numel()).view_as(together).double().sin()
    parameters = list(tower.parameters())
    whole = torch.autograd.grad((together * weights).sum(), parameters)
    parts = torch.autograd.grad((torch.stack(alone) * weights).sum(), parameters)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_a_text_is_what_its_tokens_and_their_order_say():
    tower = make_tower(TEXT)
    one, swapped, other = tower(PackedText.build([[1, 2, 3], [2, 1, 3], [1, 2, 4]]))
    assert (one - swapped).abs().max() > 1e-3
    assert (one - other).abs().max() > 1e-3


def test_no_texts_give_every_parameter_a_gradient_of_zero():
    tower = make_tower(TEXT)
    embedded = tower(PackedText.build([]))
    assert embedded.shape == (0, 6)
    embedded.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in tower.parameters())
    with pytest.raises(ValueError, match="text 1 has no token"):
        PackedText.build([[1], []])


def test_embeddings_have_length_one_and_logits_follow_from_them():
    torch.manual_seed(0)
    model = TwoTowers(TOWERS)
    batch = pack_images([np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)], patch_size=8)
    text = PackedText.build(TEXTS)
    image, texts = model.embed_images(batch), model.embed_texts(text)
    torch.testing.assert_close(torch.cat([image, texts]).norm(dim=1), torch.ones(5))
    torch.testing.assert_close(model(batch, text), 10 * image @ texts.T - 10)


def test_towers_must_meet_in_one_width():
    with pytest.raises(ValueError, match=r"images are embedded in 6 .* texts in 32"):
        TwoTowersConfig(image=IMAGE, text=replace(TEXT, embed_dim=0))
    with pytest.raises(ValueError, match="TextConfig: pad_id=40"):
        replace(TEXT, pad_id=40)
    with pytest.raises(ValueError, match="TextConfig: unknown: words"):
        TwoTowersConfig.from_dict({**TOWERS.to_dict(), "text": {"words": 1}})


@pytest.mark.parametrize("bias", [-10.0, None])
def test_saved_and_loaded_it_is_the_same_and_its_image_tower_a_model(tmp_path, bias):
    model = TwoTowers(replace(TOWERS, bias=bias))
    again = load_two_towers(save_two_towers(model, tmp_path))
    assert has_text_tower(tmp_path)
    assert again.config == model.config
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    image = load_model(tmp_path)
    assert image.config == IMAGE
    assert all(torch.equal(t, model.image.get_parameter(name)) for name, t in image.named_parameters())


def test_a_model_without_texts_is_refused_by_name(tmp_path):
    save_model(PackedViT(IMAGE), tmp_path)
    assert not has_text_tower(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors: there is no text tower"):
        load_two_towers(tmp_path)


# ---- transformers ---------------------------------------------------------------------------------------


def read_golden() -> dict[str, np.ndarray]:
    """What transformers 5.23 gave with Siglip2Model for random weights."""
    with np.load(GOLDEN / "two_towers" / "hf_siglip2.expected.npz") as file:
        return {key: file[key] for key in file.files}


@torch.inference_mode()
def test_siglip2_of_transformers_gives_what_it_gave():
    model = load_two_towers(
        GOLDEN / "two_towers" / "hf_siglip2.weights.safetensors", image={"heads": 4}, text={"heads": 4}
    )
    assert has_text_tower(GOLDEN / "two_towers" / "hf_siglip2.weights.safetensors")
    assert not has_text_tower(GOLDEN / "hf_siglip2_naflex.weights.safetensors")
    assert model.config.text.fixed_length
    data = read_golden()
    batch = pack_images([data[f"image_{i}"] for i in range(3)], patch_size=8)
    text = PackedText.build(data["texts"].tolist())
    found = {"image_embeds": model.embed_images(batch), "text_embeds": model.embed_texts(text)}
    found["logits_per_text"] = model(batch, text).T
    for name, value in found.items():
        torch.testing.assert_close(value, torch.from_numpy(data[name]), atol=5e-5, rtol=0, msg=name)


def test_its_configuration_tells_heads_and_what_fills_texts(tmp_path):
    state = load_file(GOLDEN / "two_towers" / "hf_siglip2.weights.safetensors")
    save_file(state, tmp_path / "model.safetensors")
    vision = '"vision_config": {"num_attention_heads": 4}'
    text = '"text_config": {"num_attention_heads": 2, "pad_token_id": 3}'
    (tmp_path / "config.json").write_text(f'{{"model_type": "siglip2", {vision}, {text}}}')
    config = load_two_towers(tmp_path).config
    assert (config.image.heads, config.text.heads, config.text.pad_id) == (4, 2, 3)


def test_a_wrong_file_is_refused_by_its_own_names(tmp_path):
    state = load_file(GOLDEN / "two_towers" / "hf_siglip2.weights.safetensors")
    del state["text_model.final_layer_norm.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks text\.norm\.bias"):
        load_two_towers(tmp_path)


# ---- big_vision -----------------------------------------------------------------------------------------

Shapes = dict[str, tuple[int, ...]]
WIDTH, HEADS, DEPTH, TOKENS, WORDS = 24, 3, 2, 7, 30


def make_text_weights(width_out: int, pool: str) -> dict[str, np.ndarray]:
    """A text tower of big_vision's two_towers, random."""
    rng = np.random.default_rng(1)
    shapes: Shapes = {"Embed_0/embedding": (WORDS, WIDTH), "pos_embedding": (1, TOKENS, WIDTH)}
    shapes |= {"head/kernel": (WIDTH, width_out), "head/bias": (width_out,)}
    split = (HEADS, WIDTH // HEADS)

    def attention(name: str) -> Shapes:
        parts: Shapes = {f"{name}/{part}/kernel": (WIDTH, *split) for part in ("query", "key", "value")}
        parts |= {f"{name}/{part}/bias": split for part in ("query", "key", "value")}
        return parts | {f"{name}/out/kernel": (*split, WIDTH), f"{name}/out/bias": (WIDTH,)}

    def mlp(name: str) -> Shapes:
        parts = {f"{name}/Dense_0/kernel": (WIDTH, 40), f"{name}/Dense_0/bias": (40,)}
        return parts | {f"{name}/Dense_1/kernel": (40, WIDTH), f"{name}/Dense_1/bias": (WIDTH,)}

    def norm(name: str) -> Shapes:
        return {f"{name}/scale": (WIDTH,), f"{name}/bias": (WIDTH,)}

    for i in range(DEPTH):
        block = f"Encoder_0/encoderblock_{i}"
        shapes |= attention(f"{block}/MultiHeadDotProductAttention_0") | mlp(f"{block}/MlpBlock_0")
        shapes |= norm(f"{block}/LayerNorm_0") | norm(f"{block}/LayerNorm_1")
    shapes |= norm("Encoder_0/encoder_norm")
    if pool == "map":
        shapes |= {"MAPHead_0/probe": (1, 1, WIDTH)} | attention("MAPHead_0/MultiHeadDotProductAttention_0")
        shapes |= norm("MAPHead_0/LayerNorm_0") | mlp("MAPHead_0/MlpBlock_0")
    return {key: (rng.normal(size=shape) * 0.4).astype(np.float32) for key, shape in shapes.items()}


def text_forward(p: dict[str, np.ndarray], ids: np.ndarray, pool: str) -> np.ndarray:
    """big_vision's text_transformer as its definition reads, in float64: tokens [N, L] to [N, out]."""

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def attend(x, y, name):
        q, k, v = (
            np.einsum("nld,dhe->nhle", z, p[f"{name}/{part}/kernel"]) + p[f"{name}/{part}/bias"][:, None]
            for z, part in ((x, "query"), (y, "key"), (y, "value"))
        )
        scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("nhle,hed->nld", weights @ v, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]

    def mlp(x, name):
        x = x @ p[f"{name}/Dense_0/kernel"] + p[f"{name}/Dense_0/bias"]
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return x @ p[f"{name}/Dense_1/kernel"] + p[f"{name}/Dense_1/bias"]

    p = {key: value.astype(np.float64) for key, value in p.items()}
    x = p["Embed_0/embedding"][ids] + p["pos_embedding"]
    for i in range(DEPTH):
        block = f"Encoder_0/encoderblock_{i}"
        y = norm(x, f"{block}/LayerNorm_0")
        x = x + attend(y, y, f"{block}/MultiHeadDotProductAttention_0")
        x = x + mlp(norm(x, f"{block}/LayerNorm_1"), f"{block}/MlpBlock_0")
    x = norm(x, "Encoder_0/encoder_norm")
    if pool == "map":
        probe = np.broadcast_to(p["MAPHead_0/probe"], (len(x), 1, WIDTH))
        x = attend(probe, x, "MAPHead_0/MultiHeadDotProductAttention_0")
        x = x + mlp(norm(x, "MAPHead_0/LayerNorm_0"), "MAPHead_0/MlpBlock_0")
    return x[:, -1] @ p["head/kernel"] + p["head/bias"]


def stack_blocks(text: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As nn.scan writes them."""
    first = {key for key in text if "/encoderblock_0/" in key}
    rest = {key: value for key, value in text.items() if "/encoderblock_" not in key}
    return rest | {
        key.replace("_0/", "/", 2).replace("Encoder/", "Encoder_0/"): np.stack(
            [text[key.replace("block_0", f"block_{i}")] for i in range(DEPTH)]
        )
        for key in first
    }


@torch.inference_mode()
@pytest.mark.parametrize(
    ("prefix", "pool", "stacked"), [("", "last", False), ("params/", "map", False), ("params/", "last", True)]
)
def test_siglip_of_big_vision_gives_what_its_definition_says(tmp_path, prefix, pool, stacked):
    """The image tower is the golden one, whose own outputs big_vision gave."""
    with np.load(GOLDEN / "big_vision_flexivit_map.weights.npz") as file:
        image = {key.removeprefix("params/"): file[key] for key in file.files if "/head/" not in key}
    with np.load(GOLDEN / "big_vision_flexivit_map.expected.npz") as file:
        name = next(key for key in file.files if key.startswith("pre_logits"))
        pictures, features = file["image"], file[name].astype(np.float64)
    text = make_text_weights(features.shape[1], pool)
    arrays = {f"img/{key}": value for key, value in image.items()}
    arrays |= {f"txt/{key}": value for key, value in (stack_blocks(text) if stacked else text).items()}
    arrays |= {"t": np.array([1.3], np.float32), "b": np.array([-4.0], np.float32)}
    np.savez(tmp_path / "siglip.npz", **{prefix + key: value for key, value in arrays.items()})

    model = load_two_towers(tmp_path / "siglip.npz")
    assert has_text_tower(tmp_path / "siglip.npz")
    assert (model.config.text.heads, model.config.text.pool, model.config.text.pad_id) == (HEADS, pool, 1)
    ids = np.random.default_rng(2).integers(0, WORDS, (5, TOKENS))
    expected = text_forward(text, ids, pool)
    packed = PackedText.build(ids.tolist())
    torch.testing.assert_close(model.text(packed).double(), torch.from_numpy(expected), atol=5e-5, rtol=0)

    batch: PackedBatch = pack_images(list(pictures), patch_size=120 // int(name.split("=")[1]))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    logits = torch.from_numpy(np.exp(1.3) * features @ expected.T - 4.0)
    torch.testing.assert_close(model(batch, packed).double(), logits, atol=5e-5, rtol=0)
