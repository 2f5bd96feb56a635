"""Commands find out at once that they cannot write, and replace nothing before the new is complete."""

import json
import shutil
from pathlib import Path

import pytest

from packvit.cli import dispatch
from packvit.data import Shard, check_shards, expand_shards
from packvit.data.make import manifest
from packvit.evaluate import run
from packvit.models import PackedViT, ViTConfig, load_model, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    config = ViTConfig(width=32, depth=1, heads=2, num_classes=10)
    return str(save_model(PackedViT(config), tmp_path_factory.mktemp("model")))


@pytest.fixture
def evaluate(model, digits_set, tmp_path) -> list[str]:
    flags = ["--resolutions", "16", "32", "--patch-sizes", "8", "--workers", "0", "--device", "cpu"]
    flags = ["--shards", str(digits_set / "val"), *flags, "--no-cost", "--out", str(tmp_path / "eval")]
    return ["eval", model, *flags]


def teach(model: str, shards: str, out: Path, *more: str) -> list[str]:
    flags = ["--patch-size", "8", "--resolution", "16", "--workers", "0", "--device", "cpu"]
    return ["teach", shards, "--teacher", model, *flags, "--out", str(out), *more]


def test_every_command_checks_its_folder_before_it_looks_at_anything_else(tmp_path, capsys):
    """What is read does not exist either, and would be named next."""
    (tmp_path / "file").touch()
    none, out = str(tmp_path / "none"), str(tmp_path / "file/out")
    for command in (
        ["shards", "write", none, out],
        ["shards", "demo", out],
        ["eval", none, "--shards", none, "--resolutions", "16", "--patch-sizes", "8", "--out", out],
        teach(none, none, Path(out)),
        ["analyze", "--shards", none, "--out", out],
        ["convert", none, out],
        ["convert", none, f"{out}/a.npz"],
    ):
        assert dispatch(command) == 2
        error = capsys.readouterr().err
        assert "cannot be written to" in error, command
        assert str(tmp_path / "file") in error


def test_an_eval_that_fails_leaves_the_old_results_where_they_are(evaluate, tmp_path, capsys, monkeypatch):
    assert dispatch(evaluate) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "eval").iterdir()}
    real, asked = run.summarise, []

    def failing(*arguments) -> tuple:
        asked.append(arguments)
        if len(asked) > 1:
            raise OSError("the disk is gone")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run, "summarise", failing)
        assert dispatch(evaluate) == 2
    assert len(asked) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["eval"]
    assert {name: (tmp_path / "eval" / name).read_bytes() for name in before} == before
    assert dispatch(evaluate) == 0
    assert f"Kept the previous results as {tmp_path / 'eval-1'}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "eval-1").iterdir()} == before
    assert {path.name for path in (tmp_path / "eval").iterdir()} == before.keys()


def test_results_may_go_to_the_folder_that_one_is_in(evaluate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate[-1] = "."
    assert dispatch(evaluate) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 2


def test_patches_that_no_memory_holds_are_refused(evaluate, model, digits_set, tmp_path, capsys):
    place = evaluate.index("--patch-sizes") + 1
    for size in ("100000", "4096"):
        assert dispatch([*evaluate[:place], size, *evaluate[place + 1 :]]) == 2
        assert f"patch size {size}: a side has at most 1024 pixels" in capsys.readouterr().err
    command = teach(model, str(digits_set / "val"), tmp_path / "out", "--sequences", "1000000")
    assert dispatch(command) == 2
    assert "a batch of 1000000 sequences of 1024 patches of 8 pixels" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- teach ----


def test_teach_writes_to_no_folder_with_shards_of_others(model, digits_set, tmp_path, capsys):
    shutil.copytree(digits_set / "val", tmp_path / "out")
    assert dispatch(teach(model, str(digits_set / "val"), tmp_path / "out")) == 2
    assert "already holds shards" in capsys.readouterr().err
    assert not (tmp_path / "out/teacher.json").exists()


def test_teach_goes_on_only_with_whole_shards_of_the_same_teacher(model, digits_set, tmp_path, capsys):
    out = tmp_path / "out"
    command = teach(model, str(digits_set / "train"), out)
    assert dispatch(command) == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    listed = json.loads(whole["manifest.json"])["shards"]
    assert [entry["samples"] for entry in listed.values()] == [40, 40, 40]
    assert [entry["bytes"] for entry in listed.values()] == [len(whole[name]) for name in listed]
    (out / "shard-000001.tar").write_bytes(whole["shard-000001.tar"][:5000])
    (out / "shard-000002.tar").unlink()
    capsys.readouterr()
    assert dispatch(command) == 0
    assert capsys.readouterr().out.count(": 40 images") == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert dispatch([*command, "--precision", "bf16"]) == 2  # logits of two kinds would be mixed
    assert "names another teacher" in capsys.readouterr().err
    # The same path may hold another model.
    other = save_model(PackedViT(load_model(model).config), tmp_path / "b")
    shutil.copytree(model, tmp_path / "a")
    command = teach(str(tmp_path / "a"), str(digits_set / "val"), tmp_path / "other")
    assert dispatch(command) == 0
    shutil.copy(other / "model.safetensors", tmp_path / "a")
    assert dispatch(command) == 2
    assert "names another teacher, budget, precision, field or other shards" in capsys.readouterr().err


def test_teach_takes_over_what_was_written_and_not_listed(model, digits_set, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = teach(model, str(digits_set / "train"), out)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "list_shards", killed)
        assert dispatch(command) == 130
    [left] = out.glob(".shard-000000.tar.*.whole")
    written, inode = left.read_bytes(), left.stat().st_ino
    capsys.readouterr()
    assert dispatch(command) == 0
    assert capsys.readouterr().out.count(": 40 images") == 3
    shard = out / "shard-000000.tar"
    assert (shard.read_bytes(), shard.stat().st_ino) == (written, inode)
    assert len(json.loads((out / "manifest.json").read_text())["shards"]) == 3
    assert not list(out.glob(".*"))


def test_names_with_braces_are_written_and_read_as_they_are(model, digits_set, tmp_path, capsys):
    source = tmp_path / "set{1,2}"
    shutil.copytree(digits_set / "val", source)
    pattern = str(source).replace("{", r"\{").replace("}", r"\}")
    out = tmp_path / "a{b,c}:{1..3}"
    assert dispatch(teach(model, f"{pattern}/*.tar", out)) == 0
    assert len(Shard.open(out / "shard-000000.tar")) == 30
    (tmp_path / "photos/x").mkdir(parents=True)
    shard = Shard.open(expand_shards(f"{pattern}/*.tar")[0])
    (tmp_path / "photos/x/0.jpg").write_bytes(shard.image(0))
    written = tmp_path / "pipe:{x,y}"
    assert dispatch(["shards", "write", str(tmp_path / "photos"), str(written)]) == 0
    assert len(Shard.open(written / "shard-000000.tar")) == 1
    found = str(written).replace("{", r"\{").replace("}", r"\}")
    assert check_shards(found).samples == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["set{1,2}", "a{b,c}:{1..3}", "photos", "pipe:{x,y}"]
    )
