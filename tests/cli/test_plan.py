"""`packvit plan`: from an evaluation's folder to a plan, and what is wrong with a folder in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packvit.cli import dispatch
from packvit.evaluate.plan.latency import parts
from packvit.evaluate.plan.plan import read_plan
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT, ViTConfig, hash_model, load_model, save_model

CONFIG = ViTConfig(width=32, depth=1, heads=2, num_classes=10, patch_buffer=16)
SETTINGS = [Setting(p, resolution) for p in (8, 16) for resolution in (16, 32, 48, 64)]
WEIGHTS = np.array([1.0, 1e-2, 2e-5, 3e-6, 1e-5, 0.1])
HASH = "ab" * 32


def results_of(settings: list[Setting], images: int, seed: int) -> tuple[list[dict], dict[str, Any]]:
    """Rows and predictions: more tokens are right about more images, and less confident where they err."""
    rng = np.random.default_rng(seed)
    hard, labels = rng.random(images), rng.integers(0, 10, images)
    half = rng.random(images) < 0.5
    keys = np.array([f"image-{i}" for i in range(images)])
    arrays: dict[str, Any] = {"keys": keys, "shards": keys, "labels": labels, "fit_half": half}
    rows = []
    for setting in settings:
        tokens = (setting.side / setting.patch_size) ** 2
        strength = 1 - 0.8 / np.sqrt(tokens)
        right = hard + rng.normal(0, 0.1, images) < strength
        confidence = 1 / (1 + np.exp(5 * (hard - strength + rng.normal(0, 0.1, images))))
        ms = float(parts(CONFIG, tokens, setting.patch_size) @ WEIGHTS)
        rows.append(
            {
                "setting": setting.name,
                "set": "main",
                "resolution": setting.resolution,
                "patch_size": setting.patch_size,
                "tokens": setting.tokens,
                "protocol": setting.protocol,
                "images": images,
                "tokens_per_image": tokens,
                "gflops_per_image": CONFIG.flops(int(tokens), setting.patch_size) / 1e9,
                "accuracy": float(right.mean()),
                "accuracy_low": float(right.mean()) - 0.01,
                "accuracy_high": float(right.mean()) + 0.01,
                "ece_calibrated": 0.02,
                "temperature": 1.5,
                "images_per_s": 1000 / ms,
                "latency_ms_p50": ms,
                "latency_ms_p99": 2 * ms,
                "latency_tokens": int(tokens),
            }
        )
        arrays[f"prediction/{setting.name}"] = np.where(right, labels, (labels + 1) % 10)
        arrays[f"confidence/{setting.name}"] = confidence.astype(np.float32)
        arrays[f"tokens/{setting.name}"] = np.full(images, tokens, np.int32)
    return rows, arrays


def write_evaluation(folder: Path, rows: list[dict], model: Any = None) -> None:
    folder.mkdir(exist_ok=True)
    one = {"path": "runs/a", "hash": HASH, "loss": "softmax", "config": CONFIG.to_dict()}
    device = {"name": "a cpu", "threads": 1}
    values = {"model": model or one, "device": device, "classes": None, "rows": rows}
    (folder / "results.json").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    rows, arrays = results_of(SETTINGS, 600, 0)
    write_evaluation(folder, rows)
    np.savez(folder / "predictions.npz", **arrays)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A folder of one's own."""
    return Path(shutil.copytree(whole, tmp_path / "eval"))


@pytest.fixture
def plan(folder, capsys) -> Callable[..., str]:
    """plan(*flags): what the command prints; it must succeed."""

    def run(*flags: str) -> str:
        assert dispatch(["plan", str(folder), *flags]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def change_rows(folder: Path, change: Callable[[dict], Any]) -> None:
    path = folder / "results.json"
    values = json.loads(path.read_text())
    for row in values["rows"]:
        change(row)
    path.write_text(json.dumps(values))


def change_arrays(folder: Path, **changes: np.ndarray | None) -> None:
    with np.load(folder / "predictions.npz") as file:
        arrays: dict[str, Any] = dict(file) | {name.replace("__", "/"): a for name, a in changes.items()}
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(folder / "predictions.npz", **kept)


def test_a_plan_and_a_picture_are_written_and_the_plan_holds_all_that_prediction_needs(
    folder, plan, rendering
):
    with rendering():
        out = plan("--max-tokens", "12", "--stages", "3")
    found = read_plan(folder / "plan.json")
    assert (folder / "cascade.png").stat().st_size > 1000
    assert found.model.hash == HASH
    assert found.preprocessing.mean == CONFIG.image_mean
    assert {stage.temperature for stage in found.stages} == {1.5}
    assert found.curve
    assert found.curve[0]["unit"] == "tokens"
    for stage in found.stages:
        assert stage.setting.name in out
    assert "Best setting: r48-p16, accuracy" in out  # 9 tokens; the next one has 16
    assert "The plan is" in out


def test_a_single_setting_has_the_numbers_of_its_row(folder, plan):
    plan("--stages", "1", "--max-gflops", "1")
    rows = json.loads((folder / "results.json").read_text())["rows"]
    best = max(rows, key=lambda row: row["accuracy"])
    found = read_plan(folder / "plan.json")
    assert [stage.setting.name for stage in found.stages] == [best["setting"]]
    assert found.measured.accuracy == best["accuracy"]
    assert found.measured.latency_ms_p50 == best["latency_ms_p50"]
    assert found.curve == ()


def test_the_plan_goes_where_it_is_asked_to(folder, plan, tmp_path):
    assert "Wrote" in plan("--out", str(tmp_path / "new/mine.json"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["cascade.png", "mine.json"]
    assert not (folder / "plan.json").exists()


def test_settings_without_latency_count_for_milliseconds_only_where_they_are_interpolated(folder, plan):
    def forget(row: dict) -> None:
        if row["setting"] == "r64-p8":
            row["latency_ms_p50"] = row["latency_ms_p99"] = None

    flags = ["--max-ms", "100", "--stages", "1"]
    assert "r64-p8" in plan(*flags).split("\n")[0]
    change_rows(folder, forget)
    assert "r64-p8 is left out: its latency was not measured" in plan(*flags)
    assert read_plan(folder / "plan.json").stages[0].setting != Setting(8, 64)
    out = plan(*flags, "--interpolate")
    assert read_plan(folder / "plan.json").stages[0].setting == Setting(8, 64)
    assert read_plan(folder / "plan.json").measured.latency_ms_p50 is None
    expected = float(parts(CONFIG, 64, 8) @ WEIGHTS)
    assert f"~{expected:.3g}" in out
    assert "predicted from 7 measured settings" in out
    change_rows(folder, lambda row: row.update(latency_ms_p50=None))
    assert dispatch(["plan", str(folder), *flags]) == 2


def test_the_latency_of_settings_that_were_not_measured_is_predicted(plan):
    out = plan("--setting", "r96-p8", "t40-p16", "r64-p8")
    for tokens, p in ((144, 8), (36, 16), (64, 8)):
        assert f"{float(parts(CONFIG, tokens, p) @ WEIGHTS):.3g}" in out
    assert "beyond what was measured" in out
    assert out.count("off by 0.0% (median)") == 2
    assert "Images in a packed batch" in out


def test_a_budget_of_p99_counts_all_stages_of_a_cascade(folder, plan):
    plan("--max-ms", "6", "--percentile", "p99", "--stages", "3")
    rows = {row["setting"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}
    found = read_plan(folder / "plan.json")
    assert sum(rows[stage.setting.name]["latency_ms_p99"] for stage in found.stages) <= 6
    for point in found.curve:
        if point["cascade"]:
            stages = point["cascade"]["stages"]
            cost = sum(rows[name]["latency_ms_p99"] for name in stages)
            assert point["cascade"]["cost"] == pytest.approx(cost)
            assert cost <= point["budget"] * 1.000001


def test_a_cascade_that_costs_more_on_the_other_half_says_so(folder, plan):
    sentence = "Its cost is at most 12 tokens on the images that it was chosen by; on the others it is"
    assert sentence not in plan("--max-tokens", "12")
    assert read_plan(folder / "plan.json").measured.tokens_per_image <= 12
    with np.load(folder / "predictions.npz") as file:
        halves = file["fit_half"]
    change_arrays(folder, fit_half=~halves)
    out = plan("--max-tokens", "12")
    tokens = read_plan(folder / "plan.json").measured.tokens_per_image
    assert tokens > 12
    assert f"{sentence} {tokens:.4g}." in " ".join(out.split())


def test_one_of_several_models_is_planned_by_name(folder, plan, capsys):
    models = [
        {"name": name, "path": name, "hash": name * 8, "config": CONFIG.to_dict()} for name in ("aa", "bb")
    ]
    rows = []
    for seed, name in enumerate(("aa", "bb")):
        own, arrays = results_of(SETTINGS[:3], 200, seed)
        rows += [row | {"model": name} for row in own]
        np.savez(folder / f"predictions-{name}.npz", **arrays)
    write_evaluation(folder, rows, models)
    plan("--model", "bb")
    assert read_plan(folder / "plan.json").model.hash == "bb" * 8
    for flags, what in (([], "several models"), (["--model", "cc"], "no model is named 'cc'")):
        assert dispatch(["plan", str(folder), *flags]) == 2
        error = capsys.readouterr().err
        assert what in error
        assert "--model aa | bb" in error


def test_what_an_evaluation_leaves_is_what_a_plan_is_made_from(digits_set, tmp_path, capsys):
    model = PackedViT(CONFIG)
    source = save_model(model, tmp_path / "model")
    flags = ["--resolutions", "16", "32", "--patch-sizes", "8", "--workers", "0", "--device", "cpu"]
    out = str(tmp_path / "eval")
    assert dispatch(["eval", str(source), "--shards", str(digits_set / "val"), *flags, "--out", out]) == 0
    assert dispatch(["plan", out, "--max-tokens", "10"]) == 0, capsys.readouterr().err
    found = read_plan(tmp_path / "eval/plan.json")
    found.check(hash_model(load_model(source)))
    assert found.stages[0].setting in (Setting(8, 16), Setting(8, 32))
    assert found.measured.latency_ms_p50 is not None


# ---- bad input ----


def first(name: str, value: Any) -> Callable[[Path], None]:
    """Change a field of the first row."""

    def change(folder: Path) -> None:
        change_rows(folder, lambda row: row.update({name: value} if row["setting"] == "r16-p8" else {}))

    return change


def damage(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


BAD = [
    (lambda f: (f / "results.json").unlink(), "is not an evaluation: it has no results.json"),
    (lambda f: (f / "predictions.npz").unlink(), "predictions.npz is missing"),
    (damage("results.json", '{"rows": ['), "results.json is damaged: it is not JSON"),
    (damage("results.json", "[]"), "results.json is damaged: it holds a list"),
    (damage("results.json", '{"rows": []}'), "results.json: field 'model' is missing"),
    (damage("predictions.npz", "nothing"), "predictions.npz is damaged"),
    (damage("predictions.npz", ""), "predictions.npz is damaged"),
    (first("accuracy", "high"), "rows[0]: field 'accuracy' must be a number or null, not 'high'"),
    (
        first("accuracy", 0.5),
        "predictions.npz does not belong to results.json beside it: the accuracy at r16",
    ),
    (first("setting", "r17-p8"), "rows[0]: setting 'r17-p8' does not fit the other fields (r16-p8)"),
    (first("patch_size", 0), "rows[0]: patch_size=0"),
    (first("temperature", -1), "rows[0]: temperature=-1"),
    (
        lambda f: change_rows(f, lambda row: row.update(accuracy=None)),
        "no setting usable for planning: r16-p8 is left",
    ),
    (
        lambda f: change_rows(f, lambda row: row.update(set="other")),
        "no setting usable for planning: no rows",
    ),
    (lambda f: change_arrays(f, **{"tokens__r16-p8": None}), "it has no 'tokens/r16-p8'"),
    (
        lambda f: change_arrays(f, **{"tokens__r16-p8": np.zeros(3, int)}),
        "'tokens/r16-p8' has the wrong shape",
    ),
    (lambda f: change_arrays(f, fit_half=np.zeros(600, int)), "'fit_half' has the wrong shape or type"),
    (lambda f: change_arrays(f, fit_half=np.ones(600, bool)), "leaves one half without images"),
    (lambda f: change_arrays(f, labels=np.full(600, -1)), "does not belong to results.json"),
]


@pytest.mark.parametrize(("change", "what"), BAD)
def test_what_is_wrong_with_a_folder_is_said_in_a_sentence(folder, capsys, change, what):
    change(folder)
    assert dispatch(["plan", str(folder)]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
    assert not (folder / "plan.json").exists()


def test_a_setting_with_null_or_without_confidences_is_left_out_and_named(folder, plan):
    first("temperature", None)(folder)
    change_arrays(folder, **{"confidence__r32-p8": np.full(600, np.nan, np.float32)})
    out = plan("--stages", "1")
    assert "r16-p8 is left out: results.json has null among its values" in out
    assert "r32-p8 is left out: its confidences are not finite" in out


FLAGS = [
    (
        ["--max-tokens", "0.5"],
        "no setting costs at most 0.5 tokens an image: the cheapest is r16-p16 with 1 tokens",
    ),
    (["--max-gflops", "1e-9"], "the cheapest is r16-p16"),
    (["--max-ms", "0.1"], "the cheapest is r16-p16 with"),
    (["--min-accuracy", "1"], "no setting has an accuracy of at least 100.00%: the most accurate is"),
    (["--min-accuracy", "90"], "must be a share in [0, 1]"),
    (["--max-tokens", "-1"], "must be positive"),
    (["--max-tokens", "9", "--max-ms", "3"], "max-tokens and max-ms: give one of them"),
    (["--max-tokens", "9", "--percentile", "p99"], "belong to --max-ms"),
    (["--setting", "r9"], "'r9' is not a setting"),
    (["--model", "a"], "which needs no name"),
]


@pytest.mark.parametrize(("flags", "what"), FLAGS)
def test_budgets_that_nothing_meets_and_wrong_flags_are_named(whole, capsys, flags, what):
    assert dispatch(["plan", str(whole), *flags]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
    assert not (whole / "plan.json").exists()


def test_a_place_that_cannot_be_written_to_is_refused(whole, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out, what in (
        (tmp_path / "file/plan.json", "cannot be written to"),
        (tmp_path, "is a folder"),
        (whole / "results.json", "would replace a file of an evaluation"),
        (whole / "predictions.npz", "would replace a file of an evaluation"),
    ):
        assert dispatch(["plan", str(whole), "--out", str(out)]) == 2
        assert what in capsys.readouterr().err
