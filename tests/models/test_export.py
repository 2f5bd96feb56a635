"""What is imported and exported again is the file that it was; what a format cannot hold is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from packvit.cli import dispatch
from packvit.models import PackedViT, ViTConfig, export_model, load_model
from packvit.models.files.weights import read_tensors
from packvit.packing import PackedBatch

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {path.name.split(".")[0]: path for path in sorted(GOLDEN.glob("*.weights.*"))}
BIG_VISION = [name for name in FILES if name.startswith("big_vision")]
TIMM = [name for name in FILES if name.startswith("timm")]


def load(name: str, **fields) -> PackedViT:
    return load_model(FILES[name], **{"heads": 4, **fields})


def logits(cut_image, model: PackedViT) -> torch.Tensor:
    """Of images of two shapes in patches of the stored size and of another one."""
    rng = np.random.default_rng(0)
    sizes = ((2, 3, model.config.patch_buffer), (4, 2, 12))
    images = [cut_image(rng.integers(0, 256, (r * p, c * p, 3), dtype=np.uint8), p) for r, c, p in sizes]
    with torch.inference_mode():
        return model(PackedBatch.build([images], 14))


def random_model(**fields) -> PackedViT:
    torch.manual_seed(0)
    config = {"patch_operator": "bicubic_antialias", "qk_norm": "none", "pos_grid": (4, 4)}
    model = PackedViT(
        ViTConfig(**{"width": 16, "depth": 2, "heads": 2, "num_classes": 3, **config, **fields})
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if model.pre_norm is not None:
        torch.nn.init.zeros_(model.patch_embed.bias)
    return model.eval()


@pytest.mark.parametrize("name", BIG_VISION + TIMM)
def test_import_and_export_are_inverse(tmp_path, cut_image, name: str):
    model, path = load(name), tmp_path / f"again{FILES[name].suffix}"
    untold = export_model(model, path)
    original, exported = read_tensors(FILES[name]), read_tensors(path)
    assert exported.keys() == original.keys()
    for key, tensor in original.items():
        # timm's vit_* have positions for the prefix as well, which are zero here; flexivit_* leave them out.
        added = exported[key].shape[1] - tensor.shape[1] if key == "pos_embed" else 0
        if added:
            assert not exported[key][:, :added].any()
            exported[key] = exported[key][:, added:]
        assert torch.equal(exported[key], tensor), key
    again = load_model(path, **untold)
    assert replace(again.config, layer_scale=model.config.layer_scale) == model.config
    assert torch.equal(logits(cut_image, again), logits(cut_image, model))


@pytest.mark.parametrize(
    ("name", "target", "operator"),
    [(name, "model.safetensors", "bicubic_antialias") for name in [*BIG_VISION, "hf_siglip2_naflex"]]
    + [("hf_siglip2_naflex", "model.npz", "bilinear")],
)
def test_weights_go_from_one_library_to_another(tmp_path, cut_image, name: str, target: str, operator: str):
    model = load(name, patch_operator=operator)
    untold = export_model(model, tmp_path / target)
    again = load_model(tmp_path / target, **untold)
    assert torch.equal(logits(cut_image, again), logits(cut_image, model))


TIMM_FIELDS = [
    {"pool": "map", "norm": "rms", "qk_norm": "rms", "norm_eps": 1e-5},
    {"pool": "mean", "mlp": "swiglu", "qk_norm": "layer", "pre_norm": True, "last_norm": "pooled"},
    {
        "pool": "cls",
        "cls": True,
        "registers": 2,
        "pos_embed": "grid_2d",
        "pre_norm": True,
        "layer_scale": 0.1,
    },
    {"pool": "cls", "cls": True, "pos_embed": "grid_2d", "pos_grid": (3, 5), "mlp": "quick_gelu"},
    {"pool": "mean", "cls": True, "pos_embed": "grid_2d", "pos_coords": "fractional_aspect"},
    {"pool": "mean", "pos_embed": "none", "last_norm": "none", "num_classes": 0},
]
BIG_VISION_FIELDS = [
    {"pos_table": "sinusoidal", "pos_combine": "stack", "pos_coords": "absolute", "rep_size": 6},
    {"pos_embed": "grid_2d", "pool": "cls", "cls": True, "image_std": (0.2, 0.3, 0.4)},
]


@pytest.mark.parametrize(
    ("target", "fields"),
    [("model.safetensors", fields) for fields in TIMM_FIELDS]
    + [("model.npz", {**fields, "patch_operator": "bilinear"}) for fields in BIG_VISION_FIELDS],
)
def test_fields_that_the_file_does_not_tell_are_returned(tmp_path, cut_image, target: str, fields: dict):
    model = random_model(**fields)
    untold = export_model(model, tmp_path / "new" / target)
    again = load_model(tmp_path / "new" / target, **untold)
    torch.testing.assert_close(logits(cut_image, again), logits(cut_image, model), atol=0, rtol=0)
    assert ("heads" in untold) == (target == "model.safetensors")


def test_the_names_are_those_of_naflexvit_unless_the_cls_token_of_a_square_table_is_pooled(tmp_path):
    fields = {"cls": True, "pool": "cls", "pos_embed": "grid_2d"}
    for change, key in (
        ({}, "patch_embed.proj.weight"),
        ({"pool": "map"}, "embeds.proj.weight"),
        ({"pos_grid": (2, 3)}, "embeds.proj.weight"),
    ):
        export_model(random_model(**{**fields, **change}), tmp_path / "model.safetensors")
        assert key in load_file(tmp_path / "model.safetensors")


def test_half_precision_is_kept_by_timm_and_widened_by_big_vision(tmp_path):
    model = load("big_vision_flexivit_gap").bfloat16()
    export_model(model, tmp_path / "a.npz")
    assert torch.equal(load_model(tmp_path / "a.npz").patch_embed.weight, model.patch_embed.weight.float())
    export_model(random_model().bfloat16(), tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors", heads=2).patch_embed.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("target", "fields", "message"),
    [
        ("a.npz", {}, r"big_vision cannot express patch_operator='bicubic_antialias' \(only 'bilinear'\)"),
        ("a.npz", {"registers": 2, "norm": "rms"}, r"norm='rms' \(only 'layer'\), registers=2 \(only 0\)"),
        ("a.npz", {"cls": True}, r"cls=True \(only False\)"),
        ("a.npz", {"pos_embed": "grid_2d", "pos_grid": (2, 3)}, r"pos_grid=\(2, 3\) \(only \(2, 2\)\)"),
        ("a.npz", {"pos_table": "fourier"}, r"pos_table='fourier' \(only 'sinusoidal'\)"),
        ("a.npz", {"pos_embed": "rope_2d"}, r"pos_embed='rope_2d' \(only 'grid_2d' or 'factorized'\)"),
        ("a.safetensors", {"pos_embed": "rope_2d"}, "timm cannot express pos_embed='rope_2d'"),
        ("a.npz", {"rope_coords": "absolute"}, r"rope_coords='absolute' \(only 'none'\)"),
        ("a.safetensors", {"rope_coords": "absolute"}, r"rope_coords='absolute' \(only 'none'\)"),
        ("a.safetensors", {"qk_norm": "rms"}, r"qk_norm='rms' \(only 'none' or 'layer'\)"),
        ("a.safetensors", {"mlp": "swiglu"}, "mlp='swiglu'"),
        ("a.safetensors", {"pos_coords": "absolute"}, "pos_coords='absolute'"),
        ("a.bin", {}, r"a\.bin ends neither in \.npz"),
    ],
)
def test_what_a_format_cannot_express_is_named(tmp_path, target: str, fields: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        export_model(random_model(**fields), tmp_path / target)
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


def test_the_command_converts_there_and_back(tmp_path, capsys, cut_image):
    source = FILES["timm_naflexvit_map"]
    assert dispatch(["convert", str(source), str(tmp_path / "ours"), "--heads", "4"]) == 0
    assert dispatch(["convert", str(tmp_path / "ours"), str(tmp_path / "again.safetensors")]) == 0
    assert "do not determine heads=4: pass" in capsys.readouterr().out
    model = load_model(tmp_path / "again.safetensors", heads=4)
    assert torch.equal(logits(cut_image, model), logits(cut_image, load("timm_naflexvit_map")))


def test_the_command_says_what_it_cannot_do(tmp_path, capsys):
    source, target = str(FILES["big_vision_flexivit_gap"]), str(tmp_path / "a.safetensors")
    assert dispatch(["convert", source, target]) == 2
    assert "timm cannot express patch_operator='bilinear'" in capsys.readouterr().err
    assert dispatch(["convert", source, target, "--patch-operator", "bicubic_antialias"]) == 0
    assert dispatch(["convert", source, target, "--patch-operator", "bicubic_antialias"]) == 2
    assert "a.safetensors exists already" in capsys.readouterr().err


def test_timm_has_no_bias_of_patches_before_a_norm(tmp_path):
    model = random_model(pre_norm=True)
    torch.nn.init.ones_(model.patch_embed.bias)
    with pytest.raises(ValueError, match="pre_norm=True beside a bias of the patch embedding"):
        export_model(model, tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".onnx", ".pth", ".pt2", ".weights"])
def test_kinds_of_files_that_it_does_not_write_are_no_folders(suffix: str, tmp_path, capsys):
    target = tmp_path / f"out{suffix}"
    assert dispatch(["convert", str(tmp_path / "none"), str(target)]) == 2
    assert f"{target} ends in {suffix}: " in capsys.readouterr().err
    assert not target.exists()
