"""The reader of an exported model shows images as packvit does, without packvit and without torch."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from packvit.cli import dispatch
from packvit.data import pack_images
from packvit.data.samples.cut import cut_image
from packvit.data.samples.decode import show
from packvit.evaluate.export import reader as reader_file
from packvit.evaluate.export.reader import Reader, grid_of, open_image, pi_matrix
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT, ViTConfig, load_model, save_model
from packvit.models.resample import pi_matrix as torch_pi_matrix
from packvit.packing import PackedBatch, decode_upright, native_size_of

OPERATORS = ("bilinear", "bilinear_antialias", "bicubic_antialias", "natural", "plain_bilinear_antialias")
CLASSES = ["crow", "duck", "owl"]
WITHOUT = "import sys; sys.modules.update(torch=None, packvit=None); import runpy; "
FILES = ("a.png", "b.jpg", "c.png", "d.jpg")
SIDES, RESOLUTIONS = (8, 6, 12, 4), (24, 30, 36, 13)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Four smooth pictures of different sizes, one of which lies on its side by EXIF."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, (height, width) in zip(FILES, ((20, 30), (33, 33), (12, 60), (41, 24)), strict=True):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "d.jpg" else 1
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / name, exif=exif, quality=95)
    return folder


@pytest.fixture(scope="session")
def exported(made_once) -> Path:
    """A folder with the model and, in `onnx`, what the command makes of it."""
    return made_once("exported", export)


def export(folder: Path) -> None:
    torch.manual_seed(0)
    model = PackedViT(ViTConfig(width=16, depth=1, heads=2, num_classes=3, patch_buffer=8, pos_grid=(5, 7)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_model(model, folder / "model")
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    flags = ["--classes", str(folder / "classes.json"), "--loss", "sigmoid"]
    assert dispatch(["export", str(folder / "model"), str(folder / "onnx"), *flags]) == 0


def expected_logits(exported: Path, images: Path) -> np.ndarray:
    """Of the packed model, of pixels that packvit decodes."""
    data = [(images / name).read_bytes() for name in FILES]
    pixels = [decode_upright(d, native_size_of(d)) for d in data]
    with torch.inference_mode():
        return load_model(exported / "model")(pack_images(pixels, SIDES, RESOLUTIONS)).numpy()


def run_without_torch(code: str, *arguments: str) -> str:
    command = [sys.executable, "-I", "-W", "error", "-c", WITHOUT + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_torch_and_packvit_one_call_for_all_sizes_gives_the_packed_models_logits(exported, images):
    code = """
import json
module = runpy.run_path(sys.argv[1] + "/reader.py")
pictures = [module["open_image"](path) for path in sys.argv[4:]]
sides, resolutions = json.loads(sys.argv[2]), json.loads(sys.argv[3])
outputs = module["Reader"](sys.argv[1]).run(pictures, sides, resolutions)
print(json.dumps({name: values.tolist() for name, values in outputs.items()}))
"""
    settings = json.dumps(SIDES), json.dumps(RESOLUTIONS)
    paths = [str(images / name) for name in FILES]
    outputs = json.loads(run_without_torch(code, str(exported / "onnx"), *settings, *paths))
    expected = expected_logits(exported, images)
    assert expected.std(0).min() > 1e-2  # the images differ
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-4)
    assert np.shape(outputs["features"]) == (4, 16)


def test_the_command_of_the_reader_names_classes_and_broken_files(exported, images, capsys):
    (images / "broken.png").write_bytes(b"no image")
    names = [*FILES[:2], "broken.png", *FILES[2:]]
    sides = [*SIDES[:2], 8, *SIDES[2:]]
    resolutions = [*RESOLUTIONS[:2], 8, *RESOLUTIONS[2:]]
    flags = ["--patch-size", *map(str, sides), "--resolution", *map(str, resolutions), "--batch", "3"]
    paths = [str(images / name) for name in names]
    model = ["--model", str(exported / "onnx")]
    assert reader_file.main([*paths, *flags, *model, "--top", "2"]) == 1
    lines = {line["image"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(lines) == set(paths)
    assert "cannot identify" in lines.pop(str(images / "broken.png"))["error"]
    for path, logits in zip(lines, expected_logits(exported, images), strict=True):
        best = np.argsort(-logits)[:2]
        assert lines[path]["labels"] == [CLASSES[i] for i in best]
        np.testing.assert_allclose(lines[path]["scores"], 1 / (1 + np.exp(-logits[best])), atol=1e-4)


def test_the_command_of_the_reader_runs_in_the_exported_folder_without_torch(exported, images):
    code = "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    # It ends with sys.exit(0), which leaves the status of a success.
    output = run_without_torch(code, str(exported / "onnx/reader.py"), str(images / "a.png"), "--tokens", "9")
    line = json.loads(output)
    assert sorted(line["labels"]) == CLASSES
    assert line["scores"] == sorted(line["scores"], reverse=True)


def test_the_reader_in_an_export_is_the_file_that_is_checked_here(exported):
    assert (exported / "onnx/reader.py").read_bytes() == Path(reader_file.__file__).read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokens", "4", "--resolution", "8"], "a resolution and a number of tokens exclude each other"),
        (["--patch-size", "0"], "a patch size of 0 is below 1"),
        (["--patch-size", "4", "6", "8"], "3 values for 1 images"),
        (["--protocol", "crop:2"], "protocol 'crop:2' is not one of native, square, crop:SHARE"),
        (["--model", "/nowhere"], "No such file or directory: '/nowhere/preprocess.json'"),
    ],
)
def test_bad_settings_of_the_reader_are_one_sentence(
    exported, images, capsys, flags: list[str], message: str
):
    model = ["--model", str(exported / "onnx")]
    assert reader_file.main([str(images / "a.png"), *model, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("stored", [8, 16, 32])
def test_resize_matrices_of_numpy_are_those_of_the_model(operator, stored: int):
    for size in (1, 3, 4, 7, 8, 12, 16, 20, 32, 48):
        expected = torch_pi_matrix(operator, stored, size, torch.float64, torch.device("cpu")).numpy()
        np.testing.assert_allclose(pi_matrix(operator, stored, size), expected, rtol=0, atol=1e-10)


@given(
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    patch_size=st.integers(1, 48),
    resolution=st.none() | st.integers(1, 600),
    tokens=st.integers(1, 300),
    protocol=st.sampled_from(["native", "square", "crop:1", "crop:0.875", "crop:.1"]),
)
def test_grids_are_those_of_a_setting(height, width, patch_size, resolution, tokens, protocol):
    image = Image.new("RGB", (width, height))
    size = {"tokens": tokens} if resolution is None else {"resolution": resolution}
    view = Setting(patch_size, protocol=protocol, **size).view((height, width))
    budget = tokens if resolution is None else None
    assert grid_of(image, patch_size, resolution, budget, protocol) == view.grid


@pytest.mark.parametrize("protocol", ["native", "square", "crop:1", "crop:0.7"])
def test_pixels_are_those_of_a_setting(protocol: str, exported, images):
    """Patches of the stored side are only cut and normalised."""
    model, image = load_model(exported / "model"), open_image(images / "c.png")
    native = image.height, image.width
    view = Setting(8, 30, protocol=protocol).view(native)
    packed = cut_image(show(image, view, native), view, native)
    batch = PackedBatch.build([[packed]], packed.num_tokens)
    inputs = Reader(exported / "onnx").inputs([image], 8, 30, protocol=protocol)
    expected = model.patch_embed.normalise(batch.patches[8, 8]).detach().numpy()
    np.testing.assert_allclose(inputs["patches"], expected, rtol=0, atol=1e-6)
    assert np.array_equal(inputs["coords"], batch.coords)
    assert np.array_equal(inputs["grids"], batch.grids)


def save(mode: str, orientation: int, suffix: str) -> bytes:
    rng = np.random.default_rng(1)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 1 << 16, (9, 12), np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).convert(mode)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, suffix, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "orientation", "suffix"),
    [("RGB", orientation, "PNG") for orientation in range(10)]
    + [(mode, 1, "PNG") for mode in ("L", "LA", "RGBA", "P", "I;16", "1")]
    + [("CMYK", 8, "JPEG"), ("L", 3, "JPEG"), ("RGB", 1, "WEBP")],
)
def test_files_are_decoded_as_packvit_decodes_them(mode: str, orientation: int, suffix: str):
    data = save(mode, orientation, suffix)
    pixels = np.asarray(open_image(io.BytesIO(data)))
    assert np.array_equal(pixels, decode_upright(data, native_size_of(data)))


def test_a_damaged_orientation_is_none(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\x00\x00no such thing")
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), pixels)


def test_no_images_are_refused(exported):
    with pytest.raises(ValueError, match="no images to read"):
        Reader(exported / "onnx").inputs([])
