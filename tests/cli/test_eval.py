"""`packvit eval`: what it leaves, what it takes from a run, what it refuses, and what a kill changes."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from packvit.cli import dispatch
from packvit.data import Shard, write_shards
from packvit.data.make.write import Sample
from packvit.evaluate import Evaluation, loss_kind
from packvit.evaluate.measures.calibration import confidences, in_fit_half
from packvit.evaluate.sweep.cost import COSTS
from packvit.models import PackedViT, ViTConfig, hash_model, load_model, save_model

SIZES = ["--resolutions", "16", "32", "--patch-sizes", "4", "8"]
QUICK = ["--device", "cpu", "--workers", "0", "--no-cost"]


def make_model(folder: Path, seed: int = 0, classes: int = 10) -> str:
    torch.manual_seed(seed)
    model = PackedViT(ViTConfig(width=32, depth=1, heads=2, num_classes=classes))
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight)
    return str(save_model(model, folder))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return make_model(tmp_path_factory.mktemp("models") / "first")


@pytest.fixture(scope="session")
def broken(digits_set, tmp_path_factory) -> Path:
    """Ten images, the third of which cannot be decoded, and the last has no label."""
    shard = Shard.open(digits_set / "val/shard-000000.tar")
    samples = []
    for i in range(10):
        data = shard.image(i)
        label = None if i == 9 else shard.label(i)
        samples.append(Sample(f"s{i}", data[: len(data) // 2] if i == 2 else data, "png", label))
    out = tmp_path_factory.mktemp("broken")
    write_shards(samples, out, 4)
    return out


@pytest.fixture(scope="session")
def out(model, digits_set, broken, tmp_path_factory) -> Path:
    """An evaluation of everything at once."""
    out = tmp_path_factory.mktemp("out") / "eval"
    flags = ["--shards", str(digits_set / "val"), *SIZES, "--tokens", "16", "30", "--sets", f"other={broken}"]
    flags += ["--save-predictions", "--features", "--out", str(out), "--device", "cpu", "--workers", "1"]
    assert dispatch(["eval", model, *flags]) == 0
    return out


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_results_say_what_was_evaluated_and_what_came_out(out, model):
    assert {path.name for path in out.iterdir()} == {
        "results.json", "results.csv", "predictions.npz", "predictions-other.npz", "skipped.jsonl",
        "accuracy.png", "report.html",
    }  # fmt: skip
    found = results(out)
    loaded = load_model(model)
    assert found["model"] == {
        "path": model,
        "hash": hash_model(loaded),
        "loss": "softmax",
        "num_classes": 10,
        "config": json.loads(json.dumps(loaded.config.to_dict())),
    }
    assert found["classes"] == [str(i) for i in range(10)]
    assert set(found["device"]) == {"name", "threads"}
    rows = {(row["set"], row["setting"]): row for row in found["rows"]}
    grid = ["r16-p4", "r32-p4", "r16-p8", "r32-p8"]
    assert [s for name, s in rows if name == "main"][:4] == grid
    assert {name for name, _ in rows} == {"main", "other"}
    assert {row["images"] for (name, _), row in rows.items() if name == "other"} == {8}
    for (name, _), row in rows.items():
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        measured = {row[cost] is not None for cost in COSTS if cost != "memory_mb"}
        assert measured == {name == "main"}
    for tokens in (16, 30):
        chosen = {(row["set"], row["patch_size"]) for row in found["rows"] if row["tokens"] == tokens}
        [p] = {p for _, p in chosen}
        assert {name for name, _ in chosen} == {"main", "other"}
        assert rows["main", f"t{tokens}-p{p}"]["tokens_per_image"] <= tokens
        assert rows["main", f"t{tokens}-p{p}"]["resolution"] == round(p * tokens**0.5)


def test_the_table_holds_the_same_as_the_json(out):
    with (out / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = results(out)["rows"]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        plain = {name: value for name, value in row.items() if not isinstance(value, list)}
        assert line == {name: "" if value is None else str(value) for name, value in plain.items()}


def test_predictions_are_those_of_the_rows(out, digits_set, model):
    shard = Shard.open(digits_set / "val/shard-000000.tar")
    with np.load(out / "predictions.npz", allow_pickle=False) as file:
        found = dict(file)
    assert found["keys"].tolist() == [shard.key(i) for i in range(30)]
    assert {Path(path).name for path in found["shards"]} == {"shard-000000.tar"}
    assert found["labels"].tolist() == [shard.label(i) for i in range(30)]
    assert found["fit_half"].tolist() == in_fit_half(found["keys"].tolist()).tolist()
    for row in results(out)["rows"]:
        if row["set"] != "main":
            continue
        name = row["setting"]
        prediction, logits = found[f"prediction/{name}"], found[f"logits/{name}"]
        assert (prediction == found["labels"]).mean() == pytest.approx(row["accuracy"])
        assert (prediction == logits.argmax(1)).all()
        sure = confidences(
            torch.from_numpy(logits), torch.from_numpy(prediction), "softmax", row["temperature"]
        )
        np.testing.assert_allclose(found[f"confidence/{name}"], sure.numpy(), rtol=1e-6)
        assert found[f"tokens/{name}"].mean() == pytest.approx(row["tokens_per_image"])
        assert found[f"features/{name}"].shape == (30, 32)
        kinds = {
            key: found[f"{key}/{name}"].dtype for key in ("prediction", "confidence", "tokens", "logits")
        }
        assert kinds == {
            "prediction": "int64",
            "confidence": "float32",
            "tokens": "int32",
            "logits": "float32",
        }


def test_images_that_cannot_be_used_are_named_once(out):
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["s2", "s9"]
    with np.load(out / "predictions-other.npz") as file:
        assert file["keys"].tolist() == [f"s{i}" for i in range(9) if i != 2]
        assert "logits/r16-p4" in file.files


def test_without_resolutions_all_patch_sizes_get_the_tokens(model, digits_set, tmp_path, capsys):
    flags = ["--shards", str(digits_set / "val"), "--patch-sizes", "4", "8", "--tokens", "9"]
    assert dispatch(["eval", model, *flags, "--protocol", "square", *QUICK, "--out", str(tmp_path)]) == 0
    rows = results(tmp_path)["rows"]
    assert [row["setting"] for row in rows] == ["t9-p4-square", "t9-p8-square"]
    assert {row["tokens_per_image"] for row in rows} == {9}
    assert {row["images_per_s"] for row in rows} == {None}
    assert "At most 9 tokens" in capsys.readouterr().out
    with np.load(tmp_path / "predictions.npz") as file:
        assert {name.partition("/")[0] for name in file.files} == {
            "keys", "shards", "labels", "fit_half", "tokens", "prediction", "confidence",
        }  # fmt: skip


def test_models_stand_side_by_side(model, digits_set, tmp_path, capsys):
    second = make_model(tmp_path / "first", seed=1)  # of the same name
    flags = ["--shards", str(digits_set / "val"), *SIZES, *QUICK]
    assert dispatch(["eval", model, second, *flags]) == 2
    assert "name it with out" in capsys.readouterr().err
    out = tmp_path / "out"
    assert dispatch(["eval", model, second, *flags, "--out", str(out)]) == 0
    found = results(out)
    assert [one["name"] for one in found["model"]] == ["first", "first-2"]
    assert [one["path"] for one in found["model"]] == [model, second]
    assert [row["model"] for row in found["rows"]] == ["first"] * 4 + ["first-2"] * 4
    assert (out / "predictions-first.npz").exists()
    assert (out / "predictions-first-2.npz").exists()
    alone = tmp_path / "alone"
    assert dispatch(["eval", second, *flags, "--out", str(alone)]) == 0
    assert found["rows"][4:] == [{"model": "first-2", **row} for row in results(alone)["rows"]]


def make_run(folder: Path, digits_set: Path, **train) -> Path:
    """A run's folder, as far as evaluation looks at it."""
    make_model(folder)
    values = {
        "data": {"val_shards": [str(digits_set / "val")]},
        "eval": {"resolutions": [16], "patch_sizes": [4, 8]},
        "train": train,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    shutil.copytree(
        folder, folder / "checkpoints/step-00000006", ignore=shutil.ignore_patterns("config.yaml")
    )
    return folder


def test_a_run_says_by_itself_what_it_is_evaluated_on(digits_set, tmp_path):
    run = make_run(tmp_path / "run", digits_set, loss="sigmoid")
    assert dispatch(["eval", str(run), *QUICK]) == 0
    found = results(run / "eval")
    assert [row["setting"] for row in found["rows"]] == ["r16-p4", "r16-p8"]
    assert found["model"]["loss"] == "sigmoid"
    checkpoint = run / "checkpoints/step-00000006"
    assert dispatch(["eval", str(checkpoint), *QUICK, "--resolutions", "24", "--loss", "softmax"]) == 0
    other = results(checkpoint / "eval")
    assert [row["setting"] for row in other["rows"]] == ["r24-p4", "r24-p8"]
    assert other["model"]["loss"] == "softmax"
    assert dispatch(["eval", str(run), *QUICK, "--tokens", "9"]) == 0
    assert [row["setting"] for row in results(run / "eval")["rows"]] == ["t9-p4", "t9-p8"]


def test_labels_are_where_the_run_found_them(digits_set, tmp_path):
    shard = Shard.open(next((digits_set / "val").glob("*.tar")))
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for i in range(8):
            document = json.dumps({"digit": shard.label(i)}).encode()
            for name, data in ((f"{i}.jpg", shard.image(i)), (f"{i}.json", document)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    run = make_run(tmp_path / "run", digits_set)
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["data"] = {"val_shards": [str(tmp_path / "val.tar")], "label_field": "json:digit"}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    found = []
    for shards in ([], ["--shards", str(tmp_path / "val.tar")]):
        assert dispatch(["eval", str(run), *QUICK, *shards, "--out", str(tmp_path / "out")]) == 0
        found.append(results(tmp_path / "out")["rows"])
    assert found[0] == found[1]
    assert found[0][0]["images"] == 8


def test_the_loss_is_that_of_the_run_that_a_model_belongs_to(digits_set, tmp_path):
    run = make_run(tmp_path / "run", digits_set, loss="sigmoid")
    for path in (run, run / "model.safetensors", run / "checkpoints/step-00000006"):
        assert loss_kind(path) == "sigmoid"
    # What lies above a model that is no run's says nothing of it.
    (tmp_path / "config.yaml").write_text("train: {loss: sigmoid}")
    assert loss_kind(Path(make_model(tmp_path / "other"))) is None
    (tmp_path / "other/config.yaml").write_text("[1, 2]")
    assert loss_kind(tmp_path / "other") is None
    (tmp_path / "other/config.yaml").write_text("{")
    with pytest.raises(ValueError, match=r"other/config\.yaml"):
        loss_kind(tmp_path / "other")


def fails(capsys, arguments: list[str]) -> str:
    assert dispatch(["eval", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("packvit: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_mistakes_get_one_sentence_before_the_work(model, digits_set, broken, tmp_path, capsys, monkeypatch):
    def no_work(*_: object) -> None:
        raise AssertionError("it began to work")

    monkeypatch.setattr(Evaluation, "collect", no_work)
    val, out = str(digits_set / "val"), ["--out", str(tmp_path / "out"), "--device", "cpu"]
    good = ["--shards", val, *SIZES, *out]
    few = make_model(tmp_path / "few", classes=3)
    assert "3 classes, but classes.json" in fails(capsys, [few, *good])
    shutil.copytree(digits_set / "val", tmp_path / "val", ignore=shutil.ignore_patterns("*.json"))
    error = fails(capsys, [few, "--shards", str(tmp_path / "val"), *SIZES, *out])
    assert "3 classes" in error
    assert "is not in 0..2" in error
    assert "no classification head" in fails(capsys, [make_model(tmp_path / "headless", classes=0), *good])
    assert "10 classes" in fails(capsys, [few, model, *good])
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "text.safetensors is not a readable" in fails(capsys, [str(tmp_path / "text.safetensors"), *good])
    assert "there are no shards" in fails(capsys, [model, *SIZES, *out])
    assert "there are no patch sizes" in fails(capsys, [model, "--shards", val, "--resolutions", "8", *out])
    assert "there are no resolutions" in fails(capsys, [model, "--shards", val, "--patch-sizes", "8", *out])
    assert "tokens: every value must be at least 1, not 0" in fails(capsys, [model, *good, "--tokens", "0"])
    assert "1000000000000 tokens, too many" in fails(capsys, [model, *good, "--tokens", "1000000000000"])
    assert "'crop:2' is not one of" in fails(capsys, [model, *good, "--protocol", "crop:2"])
    for sets in ("name", "=x", "x="):
        assert f"--sets '{sets}' must be NAME=SHARDS" in fails(capsys, [model, *good, "--sets", sets])
    for name in ("main", "a/b"):
        assert f"'{name}' cannot name a set" in fails(capsys, [model, *good, "--sets", f"{name}={val}"])
    assert "nowhere" in fails(capsys, [model, *good, "--sets", f"other={tmp_path / 'nowhere'}"])
    write_shards([Sample("a", b"junk", "jpg", 0)], tmp_path / "empty")
    assert "no usable image" in fails(capsys, [model, "--shards", str(tmp_path / "empty"), *SIZES, *out])
    assert "takes" in fails(capsys, [model, *good, "--sequences", "100000000"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start packvit eval without torchrun" in fails(capsys, [model, *good, "--engine", "ray"])
    assert not (tmp_path / "out").exists()


def test_a_run_of_others_starts_no_command(digits_set, tmp_path, capsys):
    run = make_run(tmp_path / "run", digits_set)
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["data"]["val_shards"] = [f"pipe:touch {tmp_path / 'mark'}"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert "names a command as shards" in fails(capsys, [str(run), *QUICK])
    assert not (tmp_path / "mark").exists()


# Ends itself as kill -9 does, in the middle of writing its third chunk.
KILLED = """
import os, signal, sys
from packvit.cli import dispatch
from packvit.common import tensors as files

real, calls = files.save_file, []

def dying(tensors, path, metadata):
    real(tensors, path, metadata)
    calls.append(path)
    if len(calls) == 3:
        os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)

files.save_file = dying
sys.exit(dispatch(sys.argv[1:]))
"""


def command(model: str, digits_set: Path, out: Path) -> list[str]:
    return ["eval", model, "--shards", str(digits_set / "train"), *SIZES, *QUICK, "--out", str(out)]


def values(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("results.json", "results.csv", "predictions.npz")}


@pytest.fixture(scope="session")
def undisturbed(model, digits_set, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert dispatch(command(model, digits_set, out)) == 0
    return values(out)


def kill(arguments: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL


def test_an_evaluation_that_was_killed_goes_on_and_gives_the_same(
    model, digits_set, undisturbed, tmp_path, capsys
):
    torch.set_num_threads(1)
    arguments = command(model, digits_set, tmp_path)
    kill(arguments)
    assert not (tmp_path / "results.json").exists()
    [left] = tmp_path.glob(".unfinished-*")
    assert len(list(left.glob("chunk-*"))) == 2
    arguments[arguments.index("--workers") + 1] = "2"
    assert dispatch(arguments) == 0
    assert "Resuming with 2 of 4 chunks" in capsys.readouterr().out
    assert values(tmp_path) == undisturbed
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("ranks", "before"),
    [
        (2, "killed"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((3, "killed"), (3, "nothing"))),
    ],
)
def test_ranks_give_the_same_as_one_process_after_a_kill_too(
    ranks, before, model, digits_set, undisturbed, tmp_path
):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = command(model, digits_set, tmp_path)
    if before == "killed":
        kill(arguments)
    result = subprocess.run(
        [*launcher, "-m", "packvit.cli", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert values(tmp_path) == undisturbed
