"""`packvit export`: what it writes for graphs of one shape, for the hub and for transformers, and what it
refuses."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from packvit.cli import dispatch
from packvit.data.samples.cut import cut_image
from packvit.data.samples.decode import show
from packvit.evaluate.export.layers import finish
from packvit.evaluate.export.reader import Reader
from packvit.evaluate.export.siglip2 import siglip2_difference
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT, ViTConfig, hash_model, load_model, save_model
from packvit.packing import PackedBatch

TINY = ViTConfig(width=16, depth=1, heads=2, num_classes=3, patch_buffer=8, pos_grid=(4, 4))
SIGLIP2 = replace(TINY, pos_embed="grid_2d", qk_norm="none", depth=2, image_std=(0.2, 0.3, 0.4))
ROW = {
    "setting": "r32-p8",
    "set": "main",
    "resolution": 32,
    "patch_size": 8,
    "tokens_per_image": 16.0,
    "gflops_per_image": 0.0123,
    "images": 30,
}
ROWS = [
    {**ROW, "accuracy": 0.5, "accuracy_low": 0.331, "accuracy_high": 0.669, "top5": None, "ece": 0.1},
    {**ROW, "setting": "t9-p8", "tokens": 9, "accuracy": None, "top5": None, "ece": None},
    {**ROW, "set": "sketch", "accuracy": 0.25, "top5": None, "ece": 0.2},
]


def save(config: ViTConfig, folder: Path, dtype: torch.dtype = torch.float32) -> PackedViT:
    torch.manual_seed(0)
    model = PackedViT(config).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_model(model, folder)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(TINY, folder)
    return folder


def write_results(path: Path, model: Path, **changes) -> Path:
    about = {"path": str(model), "hash": hash_model(load_model(model)), "loss": "sigmoid", **changes}
    path.mkdir()
    results = {"model": about, "classes": ["crow", "duck", "owl"], "rows": ROWS}
    (path / "results.json").write_text(json.dumps(results))
    return path


@pytest.mark.parametrize(
    "flags", [pytest.param([], marks=pytest.mark.slow), ["--square", "--pixels", "uint8"]]
)
def test_images_of_any_shape_go_through_the_graph_of_one_shape(model, tmp_path, capsys, flags: list[str]):
    out = tmp_path / "out"
    sizes = ["--resolution", "30", "--patch-size", "6"]
    results = ["--results", str(write_results(tmp_path / "eval", model))]
    assert dispatch(["export", str(model), str(out), *sizes, *flags, *results]) == 0
    said = capsys.readouterr().out
    assert f"Wrote {out} (" in said
    assert "Largest difference from the packed model: " in said
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((20, 30), (44, 31))]
    reader = Reader(out)
    assert (reader.about["loss"], reader.about["classes"]) == ("sigmoid", ["crow", "duck", "owl"])
    outputs = reader.run(images)
    setting = Setting(6, 30, protocol="square" if flags else "crop:1")
    packed = []
    for image in images:
        native = image.height, image.width
        packed.append(cut_image(show(image, setting.view(native), native), setting.view(native), native))
    with torch.inference_mode():
        logits = load_model(model)(PackedBatch.build([packed], 50)).numpy()
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="this graph has one shape"):
        reader.run(images, 8)


@pytest.mark.slow
def test_large_weights_get_a_file_of_their_own_and_half_precision_becomes_float32(
    tmp_path, monkeypatch, capsys
):
    """Protobuf ends at 2 GB."""
    save(replace(TINY, num_classes=0), tmp_path / "model", torch.bfloat16)
    monkeypatch.setattr("packvit.evaluate.export.write.LARGEST_FILE", 0)
    assert dispatch(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/model.onnx.data").stat().st_size > 10_000
    outputs = Reader(tmp_path / "out").run([Image.new("RGB", (16, 8))])
    assert {name: values.shape for name, values in outputs.items()} == {"features": (1, 16)}


def test_what_is_not_the_model_is_refused_and_nothing_is_left(model, tmp_path, capsys, monkeypatch):
    def wrong(model: PackedViT, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, features = finish(model, x)
        return logits + 1e-3, features

    monkeypatch.setattr("packvit.evaluate.export.graph.finish", wrong)
    assert dispatch(["export", str(model), str(tmp_path / "out"), "--format", "torch"]) == 2
    error = capsys.readouterr().err
    assert "--format torch differs from the packed model by 1.0e-03, more than 1e-04" in error
    assert not list(tmp_path.iterdir())


def test_a_folder_for_the_hub_has_the_model_and_a_card_with_its_accuracy(model, tmp_path):
    cards = pytest.importorskip("huggingface_hub").ModelCard
    flags = ["--format", "hub", "--license", "apache-2.0"]
    flags += ["--results", str(write_results(tmp_path / "eval", model))]
    assert dispatch(["export", str(model), str(tmp_path / "my-model"), *flags]) == 0
    out = tmp_path / "my-model"
    original = load_model(model)
    for again in (load_model(out), PackedViT.from_pretrained(out), PackedViT.from_pretrained(str(out))):
        assert again.config == original.config
        assert hash_model(again) == hash_model(original)
    assert PackedViT.from_pretrained(out, drop_path=0.1).config.drop_path == 0.1
    card = cards.load(out / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "packvit")
    assert 'PackedViT.from_pretrained("my-model")' in card.text
    code = card.text.split("```python\n")[1].split("```")[0].replace("my-model", str(out))
    names = {"image": np.zeros((60, 50, 3), np.uint8)}
    exec(code, names)
    assert torch.as_tensor(names["logits"]).shape == (1, 3)
    lines = card.text.splitlines()
    assert "| r32-p8 | 16.0 | 0.012 | 50.0 (33.1 to 66.9) | 0.100 | 30 |" in lines
    assert "| t9-p8 | 16.0 | 0.012 | - | - | 30 |" in lines
    assert lines.index("### sketch") < lines.index("| r32-p8 | 16.0 | 0.012 | 25.0 | 0.200 | 30 |")


def test_the_hubs_own_way_of_saving_writes_the_same_files(model, tmp_path):
    pytest.importorskip("huggingface_hub")
    load_model(model).save_pretrained(tmp_path / "out")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()


def test_siglip2_keys_are_read_again_as_the_same_model(tmp_path, capsys):
    original = save(SIGLIP2, tmp_path / "model")
    out = tmp_path / "out"
    flags = ["--format", "siglip2", "--no-verify"]
    assert dispatch(["export", str(tmp_path / "model"), str(out), *flags]) == 0
    said = capsys.readouterr().out
    assert "the head of 3 classes stays out" in said
    assert "Largest difference" not in said
    again = load_model(out)
    assert again.config == replace(original.config, num_classes=0)
    state = original.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    golden = Path(__file__).parents[1] / "golden/hf_siglip2_naflex.weights.safetensors"
    names = {name.replace("layers.1.", "layers.0.") for name in load_file(out / "model.safetensors")}
    assert names == {name.replace("layers.1.", "layers.0.") for name in load_file(golden)}


@pytest.mark.slow
@pytest.mark.parametrize("mlp", ["gelu_tanh", "gelu", "quick_gelu"])
def test_transformers_gives_the_same_features(tmp_path, mlp):
    pytest.importorskip("transformers")
    model = save(replace(SIGLIP2, mlp=mlp, mlp_ratio=3.0, norm_eps=1e-5), tmp_path / "model")
    assert dispatch(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "siglip2"]) == 0
    assert siglip2_difference(model, tmp_path / "out") < 1e-4
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[0, 0] += 1  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    assert siglip2_difference(model, tmp_path / "out") > 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"qk_norm='rms' (only 'none'), pos_embed='factorized' (only 'grid_2d')"),
        ({"pool": "mean"}, r"pool='mean' (only 'map')"),
        ({"pos_embed": "grid_2d", "pos_grid": (3, 4)}, r"pos_grid=(3, 4) (only (3, 3))"),
        ({"registers": 1}, "registers=1 (only 0)"),
        ({"pos_embed": "grid_2d", "rope_coords": "absolute"}, "rope_coords='absolute' (only 'none')"),
    ],
)
def test_siglip2_names_the_fields_that_do_not_fit(tmp_path, capsys, fields: dict, message: str):
    save(replace(TINY, **fields), tmp_path / "model")
    assert dispatch(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "siglip2"]) == 2
    error = capsys.readouterr().err
    assert "Siglip2VisionModel cannot express" in error
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "tensorrt"], "--format tensorrt: it is one of onnx, torch, hub, siglip2"),
        (["--patch-size", "8"], "--resolution and --patch-size go together"),
        (
            ["--format", "hub", "--patch-size", "8", "--resolution", "8"],
            "--format hub has no graph of one shape",
        ),
        (["--square"], "--square and --pixels belong to a graph of one shape"),
        (["--license", "mit"], "--format onnx has no model card"),
        (["--format", "hub", "--loss", "sigmoid"], "--format hub does not support --classes and --loss"),
        (["--results", "nowhere"], "--results nowhere: nowhere does not exist"),
        (["--results", "empty.json"], "empty.json is damaged: it holds a list"),
        (["--results", "other"], "other/results.json is of another model, "),
        (["--resolution", "1000000", "--patch-size", "1"], "1000000000000 tokens, too many for"),
        (["--classes", "none.json"], "--classes none.json cannot be read"),
        (["--classes", "two.json"], "2 classes are named, the model has 3"),
        (["--classes", "object.json"], "--classes object.json holds no list of names"),
        (["--classes", "empty.json"], "0 classes are named, the model has 3"),
    ],
)
def test_what_cannot_be_is_one_sentence(model, tmp_path, capsys, monkeypatch, flags: list[str], message: str):
    monkeypatch.chdir(tmp_path)
    Path("two.json").write_text('["a", "b"]')
    Path("object.json").write_text("{}")
    Path("empty.json").write_text("[]")
    write_results(Path("other"), model, hash="0")
    assert dispatch(["export", str(model), "out", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_files_that_are_there_stay_there(model, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert dispatch(["export", str(model), str(tmp_path)]) == 2
    assert f"OUT {tmp_path} has files in it" in capsys.readouterr().err
    assert dispatch(["export", str(model), str(tmp_path / "note.txt")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert (tmp_path / "note.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "package", "message"),
    [
        ("onnx", "onnx", "--format onnx needs onnx, onnxscript and onnxruntime"),
        ("siglip2", "transformers", "--verify of --format siglip2 needs transformers"),
    ],
)
def test_without_a_package_the_message_says_what_to_install(
    tmp_path, capsys, monkeypatch, kind: str, package: str, message: str
):
    save(SIGLIP2, tmp_path / "model")
    monkeypatch.setitem(sys.modules, package, None)
    assert dispatch(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", kind]) == 2
    assert f"{message}: pip install 'packvit[export]'" in capsys.readouterr().err
