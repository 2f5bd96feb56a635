"""`packvit inspect`: what it writes, and what it refuses in a sentence before it works."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from packvit.cli import dispatch
from packvit.models import PackedViT, ViTConfig, save_model


def make_model(folder: Path, classes: int) -> Path:
    torch.manual_seed(0)
    model = PackedViT(ViTConfig(width=16, depth=1, heads=2, num_classes=classes, patch_buffer=8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return save_model(model, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), 10)


def flags(model: Path, shards: Path, out: Path, *more: str) -> list[str]:
    given = ["--resolutions", "16", "24", "--patch-sizes", "4", "8", "--device", "cpu", "--pictures", "1"]
    return ["inspect", str(model), "--shards", str(shards), *given, "--out", str(out), *more]


def test_it_writes_numbers_and_pictures(model, digits_set, tmp_path, capsys, rendering):
    with rendering():
        assert dispatch(flags(model, digits_set / "val", tmp_path / "out", "--minibatch", "8")) == 0
    shown = capsys.readouterr().out
    assert "Mode switch" in shown
    found = json.loads((tmp_path / "out/inspect.json").read_text())
    names = ["r16-p4", "r16-p8", "r24-p4", "r24-p8"]
    assert [row["setting"] for row in found["settings"]] == names
    assert found["images"] == 30
    assert list(found["cka"]["tokens"]) == ["embed", "1 attn", "1 mlp"]
    assert list(found["cka"]["pooled"]) == ["embed", "1 attn", "1 mlp", "features"]
    for matrix in (
        *found["cka"]["pooled"].values(),
        *found["cka"]["tokens"].values(),
        found["knn"]["accuracy"],
    ):
        assert [len(row) for row in matrix] == [4] * 4
    assert len(found["ensembles"]["rows"]) == 6 + 4
    assert len(found["pictures"]) == 1
    assert found["skipped"] == []
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {f"{name}.png" for name in ("cka", "knn", "ensembles", "similarity", "attention")}
    for name in pictures:
        with Image.open(tmp_path / "out" / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 20


def test_broken_images_are_named_and_a_model_without_a_head_has_no_ensembles(digits_set, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = next((digits_set / "val").glob("*.tar"))
    with tarfile.open(whole) as source, tarfile.open(broken / "shard-000000.tar", "w") as target:
        for number, member in enumerate(source):
            file = source.extractfile(member)
            assert file is not None
            data = file.read()
            if number < 10 and not member.name.endswith(".cls"):
                data = data[: len(data) // 2]  # the header stays good
            member.size = len(data)
            target.addfile(member, BytesIO(data))
    headless = make_model(tmp_path / "headless", 0)
    assert dispatch(flags(headless, broken, tmp_path / "out", "--pictures", "0")) == 0
    found = json.loads((tmp_path / "out/inspect.json").read_text())
    assert found["ensembles"] is None
    assert "accuracy" not in found["settings"][0]
    assert len(found["skipped"]) == 5
    assert found["images"] == 25
    assert not (tmp_path / "out/attention.png").exists()


def test_bad_input_is_one_sentence(model, digits_set, tmp_path, capsys):
    val, out = digits_set / "val", tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with tarfile.open(tmp_path / "empty/a.tar", "w"):
        pass
    (tmp_path / "text.safetensors").write_bytes(b"none")
    for command, sentence in (
        (flags(model, val, out, "--images", "3"), "--images 3: the unbiased HSIC of CKA needs at least 4"),
        (flags(model, val, out, "--minibatch", "3"), "minibatch=3 must be at least 4"),
        (flags(model, val, out, "--patch-sizes", "8", "--resolutions", "16"), "at least two settings"),
        (flags(model, val, out, "--patch-sizes", "8", "8"), "each named once"),
        (flags(model, val, out, "--patch-sizes", "8", "2000"), "patch size 2000: a side has at most 1024"),
        (flags(model, val, out, "--resolutions", "10000000", "16"), "too many for the"),
        (flags(model, val, out, "--label-field", "txt"), "no usable image in 1 shards"),
        (flags(model, tmp_path / "empty", out), "no usable image in 1 shards"),
        (flags(model, tmp_path / "none", out), "none"),
        (flags(tmp_path / "text.safetensors", val, out), "text.safetensors is not a readable"),
        (flags(tmp_path / "nowhere", val, out), "nowhere"),
        (flags(make_model(tmp_path / "three", 3), val, out), "three has 3 classes"),
        (flags(model, val, tmp_path / "text.safetensors/out"), "cannot be written to"),
    ):
        assert dispatch(command) == 2, command
        shown = capsys.readouterr()
        assert sentence in shown.err, shown.err
        assert shown.err.startswith("packvit: error: ")
        assert not out.exists()
