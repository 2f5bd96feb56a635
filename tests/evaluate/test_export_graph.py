"""The graphs that are exported, as torch modules and through onnxruntime, are the packed model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from packvit.data import pack_images
from packvit.evaluate.export.fixed import FixedGraph
from packvit.evaluate.export.graph import PackedGraph
from packvit.evaluate.export.reader import Reader
from packvit.evaluate.export.verify import expected_outputs, graph_difference, largest_difference
from packvit.evaluate.export.write import Answers, Format, write_fixed, write_packed
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT, ViTConfig

BASE = ViTConfig(width=16, depth=1, heads=2, num_classes=3, patch_buffer=8, pos_grid=(5, 7))
CONFIGS = {
    "map": BASE,
    "mean_rms": replace(BASE, pool="mean", biases=False, mlp="swiglu", norm="rms", pos_embed="none"),
    "cls_registers": replace(BASE, pool="cls", cls=True, registers=3, qk_norm="none", layer_scale=0.3),
    "cls_mean_grid": replace(
        BASE, pool="cls_mean", cls=True, pos_embed="grid_2d", last_norm="pooled", rep_size=6
    ),
    "grid_bicubic": replace(BASE, pos_embed="grid_2d", pos_resize="bicubic", pos_coords="fractional_aspect"),
    "grid_antialias": replace(BASE, pos_embed="grid_2d", pos_resize="bicubic_antialias", last_norm="none"),
    "grid_and_rope": replace(BASE, cls=True, pos_embed="grid_2d", rope_coords="absolute"),
    "rope": replace(BASE, registers=2, pos_embed="rope_2d", parallel=True, pre_norm=True, qk_norm="layer"),
    "fourier": replace(BASE, pos_table="fourier", patch_operator="natural", mlp="gelu"),
    "product": replace(BASE, pos_coords="absolute", pos_combine="product", patch_operator="bilinear"),
    "stack": replace(
        BASE, pos_table="sinusoidal", pos_coords="fractional_aspect", pos_combine="stack", mlp="quick_gelu"
    ),
    "headless": replace(BASE, num_classes=0, patch_operator="bicubic_antialias", image_std=(0.2, 0.3, 0.4)),
}
SIZES = ((20, 30), (33, 33), (12, 60), (41, 24))
SIDES, RESOLUTIONS = (8, 6, 12, 4), (24, 30, 36, 12)


def make_model(name: str) -> PackedViT:
    torch.manual_seed(0)
    model = PackedViT(CONFIGS[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def random_images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def reader_of(model: PackedViT, folder: Path, monkeypatch) -> Reader:
    """The reader of a packed graph that nobody writes."""
    monkeypatch.setattr("packvit.evaluate.export.write._write_graph", lambda *_: None)
    write_packed(model, folder, "onnx", Answers())
    return Reader(folder)


def run(graph: torch.nn.Module, inputs: dict[str, torch.Tensor], model: PackedViT) -> dict[str, np.ndarray]:
    names = ["features"] if model.head is None else ["logits", "features"]
    with torch.inference_mode():
        return dict(zip(names, (o.numpy() for o in graph(**inputs)), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_packed_graph_is_the_packed_model_in_any_order_and_beside_padding(
    name: str, tmp_path, monkeypatch
):
    model, images = make_model(name), random_images(*SIZES)
    reader = reader_of(model, tmp_path, monkeypatch)
    arrays = reader.inputs([Image.fromarray(image) for image in images], SIDES, RESOLUTIONS)
    inputs = {key: torch.from_numpy(values) for key, values in arrays.items()}
    expected = expected_outputs(model, images, SIDES, RESOLUTIONS)
    graph = PackedGraph(model)
    assert largest_difference(run(graph, inputs, model), expected) < 1e-5
    order = torch.randperm(len(inputs["segment"]))
    mixed = {key: values if key == "grids" else values[order] for key, values in inputs.items()}
    padded = {
        "patches": torch.cat([mixed["patches"], torch.ones(5, model.config.patch_buffer**2 * 3)]),
        "coords": torch.cat([mixed["coords"], torch.zeros(5, 2, dtype=torch.int64)]),
        "grids": mixed["grids"],
        "segment": torch.cat([mixed["segment"], torch.full((5,), -1)]),
    }
    assert largest_difference(run(graph, padded, model), expected) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_the_graph_of_one_shape_is_the_packed_model(name: str):
    model, images = make_model(name), random_images((24, 36), (24, 36), (24, 36))
    expected = expected_outputs(model, images, 12, None)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    graph = FixedGraph(model, (2, 3), 12)
    for images in (pixels, pixels.float()):
        assert largest_difference(run(graph, {"images": images}, model), expected) < 1e-5


def test_the_copy_that_is_exported_is_float32_and_leaves_the_model_as_it_is():
    model = make_model("cls_registers").double().train()
    with torch.inference_mode():
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for graph in (PackedGraph(model), FixedGraph(model, (2, 2), 4)):
            assert not graph.model.training
            assert {tensor.dtype for tensor in graph.state_dict().values()} == {torch.float32}
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def check_packed_onnx(name: str, folder: Path) -> None:
    model = make_model(name)
    write_packed(model, folder, "onnx", Answers())
    assert graph_difference(model, folder, "onnx") < 1e-4
    reader = Reader(folder)
    for sizes in (((8, 8),), ((8, 24), (8, 8)), ((40, 16),) * 5):  # T and N from 1 on
        images = random_images(*sizes)
        outputs = reader.run([Image.fromarray(image) for image in images], 8)
        assert largest_difference(outputs, expected_outputs(model, images, 8, None)) < 1e-4


@pytest.mark.parametrize("name", ["cls_mean_grid"])
def test_onnxruntime_gives_the_same_numbers(name: str, tmp_path):
    check_packed_onnx(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "cls_mean_grid"])
def test_onnxruntime_gives_the_same_numbers_for_every_kind(name: str, tmp_path):
    check_packed_onnx(name, tmp_path)


def check_fixed(name: str, kind: Format, folder: Path) -> None:
    model = make_model(name)
    setting = Setting(6, 15, protocol="square")  # 2.5 patches a side become 2
    write_fixed(model, folder, kind, Answers(), setting, "float32")
    assert Reader(folder).about["grid"] == [2, 2]
    assert graph_difference(model, folder, kind) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_onnxruntime_gives_the_same_numbers_for_one_shape_of_every_kind(name: str, tmp_path):
    check_fixed(name, "onnx", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["headless", "cls_registers", "grid_antialias", "rope"])
def test_a_program_of_torch_gives_the_same_numbers(name: str, tmp_path):
    model = make_model(name)
    write_packed(model, tmp_path, "torch", Answers())
    assert graph_difference(model, tmp_path, "torch") < 1e-4
    program = torch.export.load(tmp_path / "model.pt2").module()
    image = random_images((8, 8))  # one token of one image
    inputs = Reader(tmp_path).inputs([Image.fromarray(image[0])], 8)
    outputs = run(program, {key: torch.from_numpy(values) for key, values in inputs.items()}, model)
    assert largest_difference(outputs, expected_outputs(model, image, 8, None)) < 1e-4


@pytest.mark.slow
def test_a_program_of_torch_gives_the_same_numbers_for_one_shape(tmp_path):
    check_fixed("rope", "torch", tmp_path)


def test_patches_of_other_sides_would_not_do_without_the_resize_matrix(tmp_path, monkeypatch):
    """K matters: an image's patches brought to the buffer as pictures give other numbers."""
    model, (image,) = make_model("map"), random_images((12, 12))
    reader = reader_of(model, tmp_path, monkeypatch)
    monkeypatch.setattr("packvit.evaluate.export.reader.pi_matrix", lambda _, stored, p: np.eye(p, stored))
    inputs = {k: torch.from_numpy(v) for k, v in reader.inputs([Image.fromarray(image)], 6).items()}
    with torch.inference_mode():
        features = model.features(pack_images([image], 6))
        assert (PackedGraph(model)(**inputs)[-1] - features).abs().max() > 1e-3
