"""Models in an object store are those on the disk."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from faults.bucket import Bucket
from faults.store import KEYS
from packvit.cli import dispatch
from packvit.common.stores import again, objects
from packvit.evaluate.loss import find_run_config
from packvit.models import PackedViT, ViTConfig, load_model, save_model

pytestmark = pytest.mark.skipif(find_spec("obstore") is None, reason="needs obstore (packvit[storage])")

RUN = "s3://bucket/runs/x"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run with three models, and a store with the same."""
    folder = tmp_path / "x"
    for seed, place in enumerate((".", "best", "checkpoints/step-00000003")):
        torch.manual_seed(seed)
        save_model(PackedViT(ViTConfig(width=16, depth=1, heads=2, num_classes=3)), folder / place)
    (folder / "config.yaml").write_text("train:\n  loss: sigmoid\n")
    (folder / "classes.json").write_text('["ant", "bee", "cat"]')
    (folder / "metrics.jsonl").write_text("{}")
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    there = {f"bucket/runs/x/{name.as_posix()}": file.read_bytes() for name, file in files.items()}
    with Bucket(there) as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.address}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PACKVIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(again, "BACKOFF", 0.01)
        objects.close_idle()
        yield folder, server


@pytest.mark.parametrize("place", ["", "/best", "/checkpoints/step-00000003", "/best/model.safetensors"])
def test_a_model_in_a_store_is_that_on_the_disk_with_the_configuration_of_its_run(place, run):
    folder, server = run
    asked: list[str] = []
    one = load_model(f"{RUN}{place}").state_dict()
    two = load_model(f"{folder}{place}").state_dict()
    assert all(torch.equal(one[name], two[name]) for name in two)
    server.choose = lambda method, key: asked.append(key)
    path = find_run_config(Path(f"{RUN}{place}"))
    assert path is not None
    assert path.read_bytes() == (folder / "config.yaml").read_bytes()
    assert asked  # whether all is as it was
    assert not any(key.endswith(".safetensors") for key in asked)


def test_a_model_that_is_replaced_in_the_store_is_fetched_anew(run):
    _, server = run
    before = load_model(f"{RUN}/best").state_dict()
    server.objects["bucket/runs/x/best/model.safetensors"] = server.objects["bucket/runs/x/model.safetensors"]
    after = load_model(f"{RUN}/best").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in load_model(RUN).state_dict().items())


def test_commands_take_models_in_a_store(run, tmp_path, capsys):
    folder, _ = run
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(image)
    answers = []
    for model in (RUN, str(folder)):
        assert dispatch(["predict", model, str(image), "--resolution", "32", "--device", "cpu"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert "bee" in answers[0]
    assert dispatch(["info", f"{RUN}/best"]) == 0
    assert "classes              3" in capsys.readouterr().out
    assert dispatch(["eval", RUN, "--shards", "x"]) == 2
    assert f"{RUN} is in a store, and results need a folder of this machine" in capsys.readouterr().err
    assert dispatch(["plan", f"{RUN}/eval"]) == 2
    assert f"{RUN}/eval is in a store: name the plan's file" in capsys.readouterr().err
    assert dispatch(["plan", f"{RUN}/eval", "--out", str(tmp_path / "plan.json")]) == 2
    assert "results.json" in capsys.readouterr().err


def test_what_is_no_model_in_a_store_is_said(run):
    with pytest.raises(FileNotFoundError, match=r"no model at s3://bucket/none: there is no model"):
        load_model("s3://bucket/none")
    run[1].choose = lambda method, key: 403
    with pytest.raises(OSError, match=r"s3://bucket/runs/x cannot be listed: the store refuses access"):
        load_model(RUN)


def test_profiles_of_the_user_give_access_where_boto3_is_installed(run, tmp_path, monkeypatch):
    pytest.importorskip("boto3", reason="needs boto3")
    file = tmp_path / "credentials"
    file.write_text("[work]\naws_access_key_id = of-work\naws_secret_access_key = secret\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "work")
    objects.close_idle()
    load_model(RUN)
    assert all("Credential=of-work/" in text for text in run[1].signed)
    monkeypatch.setenv("AWS_PROFILE", "none")
    objects.close_idle()
    with pytest.raises(OSError, match="none"):
        load_model(RUN)
