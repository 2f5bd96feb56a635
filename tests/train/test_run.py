"""A whole run through the command: what it leaves in its folder, and what it says when something is wrong."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from packvit.cli import dispatch
from packvit.common.json_lines import read_json_lines
from packvit.data import write_shards
from packvit.data.make.write import Sample
from packvit.evaluate.sweep.cost import COSTS
from packvit.models import load_model, save_model
from packvit.train.config import load_config
from packvit.train.run import lock_folder

LINE = {
    "step", "images_seen", "tokens_seen", "gflops_seen", "loss", "lr", "images_per_s", "tokens_per_s",
    "padding_fraction", "images_per_step", "images_per_sequence", "data_wait_fraction", "mfu", "mfu_measured",
    "grad_norm",
    "nonfinite_steps", "shrunk", "loss_by_patch_size", "loss_by_resolution", "drop_rate",
    "drop_rate_by_resolution", "memory_gb",
}  # fmt: skip
ROW = {
    "setting", "set", "resolution", "patch_size", "tokens", "protocol", "images", "tokens_per_image",
    "gflops_per_image", "accuracy", "accuracy_low", "accuracy_high", "top5", "nll", "brier", "ece",
    "temperature", "nll_calibrated", "ece_calibrated", "class_accuracy", "images_per_s", "latency_ms_p50",
    "latency_ms_p99", "latency_tokens", "memory_mb",
}  # fmt: skip


@pytest.fixture(scope="session")
def finished(run_flags, digits_set, tmp_path_factory, rendering):
    run_dir = tmp_path_factory.mktemp("run") / "digits"
    flags = run_flags(run_dir, data__workers=0, data__val_shards=digits_set / "val")
    flags += ["--eval.resolutions", "24", "32", "--eval.patch-sizes", "8", "16", "--train.precision", "bf16"]
    with rendering():
        assert dispatch(["train", *flags]) == 0
    return run_dir


def test_a_run_leaves_its_folder_as_designed(finished):
    config = load_config(finished / "config.yaml")
    assert config.train.steps == 6
    lines = read_json_lines(finished / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(set(line) == LINE for line in lines)
    assert lines[-1]["images_seen"] > 0
    assert 0 <= lines[-1]["padding_fraction"] < 0.5
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == [
        "step-00000003",
        "step-00000006",
    ]
    for picture in ("samples/step-0.png", "eval/accuracy.png", "curves.png", "loss.png", "drop.png"):
        with Image.open(finished / picture) as image:
            assert image.width > 300
    results = json.loads((finished / "eval/results.json").read_text())
    assert [(row["resolution"], row["patch_size"]) for row in results["rows"]] == [
        (24, 8),
        (32, 8),
        (24, 16),
        (32, 16),
    ]
    assert all(set(row) == ROW and row["images"] == 30 for row in results["rows"])


def test_the_model_of_a_run_and_of_its_checkpoint_are_the_same(finished):
    model = load_model(finished)
    saved = load_model(finished / "checkpoints/step-00000006")
    assert model.config == saved.config == load_config(finished / "config.yaml").model
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), saved.parameters(), strict=True))


def test_a_finished_run_started_again_changes_nothing(finished, capsys):
    before = (finished / "metrics.jsonl").read_text()
    assert dispatch(["train", str(finished / "config.yaml")]) == 0
    assert "step-00000006" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_text() == before


def test_eval_of_a_run_gives_the_same_rows(finished, digits_set, tmp_path):
    arguments = ["--shards", str(digits_set / "val"), "--resolutions", "32", "--patch-sizes", "8", "12"]
    arguments += ["--precision", "bf16", "--workers", "0", "--out", str(tmp_path)]
    assert dispatch(["eval", str(finished), *arguments]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    old = json.loads((finished / "eval/results.json").read_text())["rows"]
    [same] = [row for row in old if row["setting"] == "r32-p8"]
    for name in ROW - set(COSTS):
        assert rows[0][name] == same[name], name
    assert rows[1]["patch_size"] == 12


def test_eval_keeps_the_results_of_before(finished, digits_set, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (run / "eval/results.json").read_text()
    arguments = ["--shards", str(digits_set / "val"), "--resolutions", "24", "--patch-sizes", "12"]
    assert dispatch(["eval", str(run), *arguments, "--workers", "0"]) == 0
    assert "eval-1" in capsys.readouterr().out
    assert (run / "eval-1/results.json").read_text() == before
    assert len(json.loads((run / "eval/results.json").read_text())["rows"]) == 1


def test_a_folder_is_for_one_run_at_a_time(capsys, run_flags, tmp_path):
    with lock_folder(tmp_path):
        assert "another run" in fails(capsys, ["train", *run_flags(tmp_path)])


def test_changes_on_resuming_are_named_or_refused(capsys, run_flags, tmp_path):
    assert dispatch(["train", *run_flags(tmp_path, train__steps=2, data__workers=0)]) == 0
    flags = run_flags(tmp_path, train__steps=3, data__workers=0, optim__lr=0.5)
    assert dispatch(["train", *flags]) == 0
    output = capsys.readouterr().out
    assert "train.steps was 2, is 3" in output
    assert "optim.lr was 0.003, is 0.5" in output
    assert read_json_lines(tmp_path / "metrics.jsonl")[-1]["step"] == 3
    for change, message in (
        ({"seed": 1}, "seed=0, not 1"),
        ({"optim__kind": "adamw"}, "optim.kind=muon"),
        ({"train__ema": 0}, "train.ema"),
    ):
        assert message in fails(capsys, ["train", *run_flags(tmp_path, data__workers=0, **change)])


def test_steps_without_a_finite_gradient_are_skipped_and_then_stop_the_run(
    capsys, run_flags, tmp_path, monkeypatch
):
    from packvit.train.tasks import classification

    real, calls = classification.classification_loss, []

    def sometimes(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) in (2, 3) else 1)

    monkeypatch.setattr(classification, "classification_loss", sometimes)
    flags = run_flags(tmp_path / "a", data__workers=0, train__steps=5)
    assert dispatch(["train", *flags]) == 0
    lines = read_json_lines(tmp_path / "a/metrics.jsonl")
    assert [line["nonfinite_steps"] for line in lines] == [0, 1, 2, 2, 2]
    assert [line["loss"] is None for line in lines] == [False, True, True, False, False]
    assert all(parameter.isfinite().all() for parameter in load_model(tmp_path / "a").parameters())
    calls.clear()
    flags = run_flags(tmp_path / "b", data__workers=0, train__max_nonfinite=1)
    assert "not finite in 2 steps in a row, up to step 3" in fails(capsys, ["train", *flags])


def fails(capsys, arguments: list[str]) -> str:
    assert dispatch(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("packvit: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_mistakes_get_one_sentence(capsys, run_flags, digits_set, finished, tmp_path):
    assert "not a command" in fails(capsys, ["trian"])
    assert "neither a recipe" in fails(capsys, ["train", "digit"])
    assert "data.shards" in fails(capsys, ["train", "digits"])
    flags = run_flags(tmp_path / "a", data__shards=tmp_path / "nowhere")
    assert "nowhere" in fails(capsys, ["train", *flags])
    flags = run_flags(tmp_path / "a", data__val_shards=tmp_path / "nowhere")
    assert "nowhere" in fails(capsys, ["train", *flags])
    budget = ["--shards", "x", "--resolutions", "8", "--patch-sizes", "8"]
    assert "nothing" in fails(capsys, ["eval", str(tmp_path / "nothing"), *budget])
    budget = ["--shards", str(digits_set / "val"), "--resolutions", "0", "--patch-sizes", "8"]
    assert "at least 1" in fails(capsys, ["eval", str(finished), *budget])
    assert "num_classes" in fails(capsys, ["train", *run_flags(tmp_path / "a", model__num_classes=0)])
    flags = ["--data.streams", "2", "--train.steps", "9"]
    assert "data.streams" in fails(capsys, ["train", str(finished / "config.yaml"), *flags])
    flags = run_flags(finished, model__width=64, train__steps=9, data__workers=0)
    assert "model.width=32, not 64" in fails(capsys, ["train", *flags])


def test_a_wrong_flag_is_named(capsys, run_flags, tmp_path):
    assert "packing.seq_len=0" in fails(capsys, ["train", *run_flags(tmp_path), "--packing.seq-len", "0"])
    for flag, value, message in [
        ("--packing.seq-len", "long", "packing.seq-len"),
        ("--packing.sq-len", "64", "packing.sq-len"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            dispatch(["train", *run_flags(tmp_path), flag, value])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_too_many_bad_samples_stop_the_run_and_are_named(capsys, run_flags, digits_set, tmp_path):
    good = next(iter(sorted((digits_set / "train").glob("*.tar"))))
    from packvit.data import Shard

    shard = Shard.open(good)
    samples = [
        Sample(f"s{i}", shard.image(i) if i % 5 else b"broken", "jpg", shard.label(i))
        for i in range(len(shard))
    ]
    write_shards(samples, tmp_path / "shards")
    flags = run_flags(tmp_path / "run", data__shards=tmp_path / "shards", data__workers=0, train__steps=40)
    message = fails(capsys, ["train", *flags])
    assert "data.max_bad_fraction" in message
    named = read_json_lines(tmp_path / "run/skipped.jsonl")
    assert {line["key"] for line in named} <= {f"s{i}" for i in range(0, 40, 5)}
    assert named
    flags += ["--data.max-bad-fraction", "0.3"]
    assert dispatch(["train", *flags]) == 0


def test_a_run_that_runs_out_of_data_names_what_was_lost(capsys, run_flags, tmp_path):
    write_shards([Sample(f"s{i}", b"junk", "jpg", 0) for i in range(5)], tmp_path / "shards")
    flags = run_flags(tmp_path / "run", data__shards=tmp_path / "shards", data__workers=1)
    assert "no usable sample" in fails(capsys, ["train", *flags])
    named = read_json_lines(tmp_path / "run/skipped.jsonl")
    assert {line["key"] for line in named} == {f"s{i}" for i in range(5)}


def test_a_small_share_of_bad_headers_stops_no_run(run_flags, digits_set, tmp_path):
    from packvit.data import Shard

    shard = Shard.open(digits_set / "train/shard-000000.tar")
    samples = [
        Sample(f"s{i}", b"broken" if i % 50 == 7 else shard.image(i % 40), "jpg", shard.label(i % 40))
        for i in range(400)
    ]
    write_shards(samples, tmp_path / "shards", 100)
    changes = {"data__shards": tmp_path / "shards", "data__workers": 0, "packing__lookahead": 256}
    flags = run_flags(tmp_path / "run", packing__balance=16, train__steps=12, **changes)
    assert dispatch(["train", *flags]) == 0


def test_a_finished_run_says_that_there_is_nothing_to_train(run_flags, tmp_path, capsys):
    flags = run_flags(tmp_path, data__workers=0, train__steps=3)
    assert dispatch(["train", *flags]) == 0
    capsys.readouterr()
    assert dispatch(["train", *flags, "--train.steps", "2"]) == 0
    assert "Nothing to train: step is 3 already, of 2" in capsys.readouterr().out


def test_a_run_computes_as_configured(run_flags, tmp_path, monkeypatch):
    found = []

    def look(*_: object) -> None:
        found.append(torch.are_deterministic_algorithms_enabled())
        found.append(torch.backends.cuda.matmul.fp32_precision)

    monkeypatch.setattr("packvit.train.run.train", look)
    flags = run_flags(tmp_path, data__workers=0, train__precision="tf32")
    assert dispatch(["train", *flags, "--train.deterministic"]) == 0
    assert found == [True, "tf32"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_whose_weights_are_not_finite_keeps_its_last_good_checkpoint(
    run_flags, tmp_path, capsys, monkeypatch
):
    from packvit.train.step.step import Engine

    real = Engine.update

    def overflow(self: Engine, grad_norm: torch.Tensor, number: int, factor: float) -> None:
        real(self, grad_norm, number, factor)
        if number == 3:
            with torch.no_grad():
                next(self.model.parameters()).fill_(math.inf)

    monkeypatch.setattr(Engine, "update", overflow)
    flags = run_flags(tmp_path, data__workers=0, train__steps=4, train__checkpoint_every=2)
    assert "diverged: at step 4" in fails(capsys, ["train", *flags])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (tmp_path / "model.safetensors").exists()


def test_results_hold_null_where_a_model_answers_nothing_finite(finished, digits_set, tmp_path, capsys):
    model = load_model(finished)
    assert model.head is not None
    torch.nn.init.constant_(model.head.weight, math.nan)
    save_model(model, tmp_path)
    arguments = ["--shards", str(digits_set / "val"), "--resolutions", "24", "--patch-sizes", "12"]
    assert dispatch(["eval", str(tmp_path), *arguments, "--workers", "0"]) == 0
    assert "not finite" in capsys.readouterr().out
    text = (tmp_path / "eval/results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["rows"][0]["ece"] is None


def test_budgets_beyond_all_memory_are_refused_before_training(
    run_flags, digits_set, finished, tmp_path, capsys
):
    val = str(digits_set / "val")
    flags = run_flags(tmp_path, data__val_shards=val, eval__resolutions=1_000_000, eval__patch_sizes=8)
    assert "too many for the" in fails(capsys, ["train", *flags])
    assert not (tmp_path / "metrics.jsonl").exists()
    budget = ["--shards", val, "--resolutions", "1000000", "--patch-sizes", "8"]
    assert "too many for the" in fails(capsys, ["eval", str(finished), *budget])


def test_views_that_are_shrunk_are_counted_and_said(run_flags, tmp_path, capsys):
    changes = {"data__workers": 0, "views__drop__kind": "none", "packing__seq_len": 16, "train__steps": 2}
    assert dispatch(["train", *run_flags(tmp_path, **changes)]) == 0
    shrunk = [line["shrunk"] for line in read_json_lines(tmp_path / "metrics.jsonl")]
    assert 0 < shrunk[0] <= shrunk[1]
    flags = run_flags(tmp_path, **changes | {"train__steps": 3})
    assert dispatch(["train", *flags]) == 0
    last = read_json_lines(tmp_path / "metrics.jsonl")[-1]
    assert last["shrunk"] >= shrunk[1]
    assert f"{last['shrunk']} views were longer than packing.seq_len=16" in capsys.readouterr().out


def test_samples_of_other_classes_are_foretold_counted_and_said(run_flags, tmp_path, capsys):
    changes = {"data__workers": 0, "model__num_classes": 9, "data__max_bad_fraction": 1, "train__steps": 2}
    assert dispatch(["train", *run_flags(tmp_path, **changes)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "classes.json names 10 classes: samples with a label above 8 cannot be used" in said
    bad = len(read_json_lines(tmp_path / "skipped.jsonl"))
    assert bad > 0
    assert f"{bad} samples could not be used, {bad} of them because" in said
    assert "label 9 is not in 0..8" in said


@pytest.mark.slow
def test_ranks_say_a_mistake_once(run_flags, tmp_path):
    flags = run_flags(tmp_path / "run", data__shards=tmp_path / "nowhere")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for more, message in (([], "nowhere"), (["--train.steps", "0"], "train.steps=0")):
        result = subprocess.run(
            [*command, "-m", "packvit.train", *flags, *more], capture_output=True, text=True, timeout=120
        )
        assert result.returncode != 0
        output = result.stdout + result.stderr
        assert output.count(message) == 1, output
