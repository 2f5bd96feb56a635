"""`packvit eval` on sets with labels of their own and on corrupted images, and its features under `probe`."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from packvit.cli import dispatch
from packvit.data import Corruption, EvalSet, Shard, pack_images, write_shards
from packvit.data.make.write import Sample
from packvit.data.streams.headers import Scanner
from packvit.evaluate import run
from packvit.evaluate.measures.accuracy import wilson_interval
from packvit.models import PackedViT, ViTConfig, load_model, save_model
from packvit.packing import decode_upright

SETTINGS = ["r16-p8", "r16-p4"]
FLAGS = ["--resolutions", "16", "--patch-sizes", "8", "4", "--device", "cpu", "--workers", "0", "--no-cost"]
# Labels of the mapped set are those of the demo: 0 to 3 have classes, the others none.
LABEL_MAP = {"0": [3, 7], "1": 1, "2": [], "3": [2, 0], "9": []}
CORRUPTED = ["contrast-1", "fog-2", "fog-3"]
CORRUPTIONS = ["--corruptions", "contrast:1", "fog:2", "fog:3"]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    model = PackedViT(ViTConfig(width=32, depth=1, heads=2, num_classes=10))
    assert model.head is not None
    torch.nn.init.normal_(model.head.weight)
    return str(save_model(model, tmp_path_factory.mktemp("models") / "first"))


@pytest.fixture(scope="session")
def shards(digits_set, tmp_path_factory) -> str:
    """The first 16 images of the demo, in two shards."""
    shard = Shard.open(digits_set / "val/shard-000000.tar")
    samples = [Sample(f"s{i:02d}", shard.image(i), "png", shard.label(i)) for i in range(16)]
    out = tmp_path_factory.mktemp("shards")
    write_shards(samples, out, 8)
    return str(out)


@pytest.fixture(scope="session")
def answers() -> dict[str, list[int]]:
    """Right answers by key; every fourth image has none, and the last no entry."""
    return {f"s{i:02d}": [] if i % 4 == 3 else [i % 10, (3 * i + 1) % 10][: 1 + i % 2] for i in range(15)}


@pytest.fixture(scope="session")
def out(model, shards, answers, tmp_path_factory) -> Path:
    """An evaluation of all of it."""
    folder = tmp_path_factory.mktemp("out")
    (folder / "map.json").write_text(json.dumps(LABEL_MAP))
    (folder / "real.json").write_text(json.dumps(answers))
    flags = ["--shards", shards, *FLAGS, "--sets", f"mapped={shards}", f"real={shards}"]
    flags += ["--label-map", f"mapped={folder / 'map.json'}", "--label-sets", f"real={folder / 'real.json'}"]
    out = folder / "eval"
    assert dispatch(["eval", model, *flags, *CORRUPTIONS, "--save-predictions", "--out", str(out)]) == 0
    return out


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def rows_of(out: Path, name: str) -> list[dict]:
    rows = [row for row in results(out)["rows"] if row["set"] == name]
    assert [row["setting"] for row in rows] == SETTINGS
    return rows


def predictions(out: Path, name: str | None = None) -> dict[str, np.ndarray]:
    with np.load(out / ("predictions.npz" if name is None else f"predictions-{name}.npz")) as file:
        return dict(file)


def skipped(out: Path, reason: str) -> list[str]:
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    return sorted(line["key"] for line in lines if reason in line["reason"])


def test_a_mapped_set_is_answered_with_its_own_labels(out):
    """By definition: the largest logit of all mapped classes, right if its class is one of the label's."""
    classes = {0: [3, 7], 1: [1], 3: [2, 0]}
    main, found = predictions(out), predictions(out, "mapped")
    kept = np.isin(main["labels"], list(classes))
    assert 0 < kept.sum() < 16
    assert found["keys"].tolist() == main["keys"][kept].tolist()
    assert found["labels"].tolist() == main["labels"][kept].tolist()
    assert skipped(out, "map.json has no class") == main["keys"][~kept].tolist()
    label_of = {index: label for label, indices in classes.items() for index in indices}
    for row in rows_of(out, "mapped"):
        logits = main[f"logits/{row['setting']}"][kept]
        slow = [label_of[max(label_of, key=lambda index: values[index])] for values in logits]
        assert found[f"prediction/{row['setting']}"].tolist() == slow
        assert row["images"] == kept.sum()
        assert row["accuracy"] == pytest.approx(np.mean(np.array(slow) == found["labels"]))
        assert len(row["class_accuracy"]) == 10
        for label, value in enumerate(row["class_accuracy"]):
            own = found["labels"] == label
            assert value == (pytest.approx((np.array(slow) == label)[own].mean()) if own.any() else None)


def test_any_of_the_right_answers_counts_and_images_without_any_do_not(out, answers):
    main, found = predictions(out), predictions(out, "real")
    kept = np.array([bool(answers.get(key)) for key in main["keys"]])
    assert kept.sum() == 12
    assert found["keys"].tolist() == main["keys"][kept].tolist()
    assert skipped(out, "real.json has no label") == main["keys"][~kept].tolist()
    assert set(found["labels"]) == {-1}
    for row in rows_of(out, "real"):
        prediction = main[f"prediction/{row['setting']}"][kept]
        right = [int(p) in answers[key] for p, key in zip(prediction, found["keys"], strict=True)]
        assert found[f"prediction/{row['setting']}"].tolist() == prediction.tolist()
        assert row["accuracy"] == pytest.approx(np.mean(right))
        assert (row["accuracy_low"], row["accuracy_high"]) == wilson_interval(sum(right), 12)
        assert 0 <= row["ece"] <= 1
        assert {row[name] for name in ("top5", "nll", "brier", "temperature", "class_accuracy")} == {None}


def test_corrupted_sets_are_the_main_one_corrupted(out, model, shards):
    loaded = load_model(model).eval()
    images = EvalSet(shards)
    for name in CORRUPTED:
        found, corruption = predictions(out, name), Corruption.parse(name.replace("-", ":"))
        assert found["keys"].tolist() == [header.key for header in images.headers]
        for place in (0, 9):
            header = images.headers[place]
            data = images.shards.open(header.reference.shard).image(header.reference.member)
            pixels = corruption(decode_upright(data, header.native_size), header.key)
            with torch.inference_mode():
                logits = loaded.outputs(pack_images([pixels], 4, 16)).logits[0]
            np.testing.assert_allclose(found["logits/r16-p4"][place], logits, rtol=1e-4, atol=1e-4)
        for row in rows_of(out, name):
            right = found[f"prediction/{row['setting']}"] == found["labels"]
            assert row["accuracy"] == pytest.approx(right.mean())
    summaries = results(out)["corruptions"]
    assert [one["setting"] for one in summaries] == SETTINGS
    for place, one in enumerate(summaries):
        clean, contrast, two, three = (rows_of(out, n)[place]["accuracy"] for n in ("main", *CORRUPTED))
        assert one["clean"] == clean
        assert one["kinds"] == {"contrast": contrast, "fog": pytest.approx((two + three) / 2)}
        assert one["corrupted"] == pytest.approx((contrast + (two + three) / 2) / 2)


def test_corrupted_sets_leave_rows_alone_unless_predictions_are_saved(
    out, model, shards, tmp_path, capsys, monkeypatch
):
    """It also goes on after a failure with what is missing, and reads the headers once."""
    command = ["eval", model, "--shards", shards, *FLAGS, *CORRUPTIONS, "--out", str(tmp_path / "out")]
    real, asked = run.summarise, []

    def failing(*arguments):
        asked.append(arguments)
        if len(asked) == 6:  # the second setting of the second corrupted set
            raise OSError("the disk is gone")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run, "summarise", failing)
        assert dispatch(command) == 2
    finished = list((tmp_path / "out").glob(".unfinished-*/result.json"))
    assert [[path.name for path in result.parent.iterdir()] for result in finished] == [["result.json"]]
    headers, passes, pieces = [], [], EvalSet.pieces
    read = Scanner.scan
    monkeypatch.setattr(Scanner, "scan", lambda *a: headers.append(a) or read(*a))
    monkeypatch.setattr(
        EvalSet, "pieces", lambda self, *a: passes.append((self.alter, len(a[2]))) or pieces(self, *a)
    )
    capsys.readouterr()
    assert dispatch(command) == 0
    assert len(headers) == 2  # of two shards
    chunks = {str(alter and alter.name): number for alter, number in passes}
    assert chunks == {"None": 0, "contrast-1": 0, "fog-2": 0, "fog-3": 1}
    shown = capsys.readouterr().out
    assert all(
        text in shown for text in ("Accuracy under corruption", "contrast", "fog", "mean of the kinds")
    )
    assert "fog-3" not in shown
    assert [path.name for path in (tmp_path / "out").glob("*.npz")] == ["predictions.npz"]
    both = ("main", *CORRUPTED)
    assert results(tmp_path / "out")["rows"] == [r for r in results(out)["rows"] if r["set"] in both]
    assert results(tmp_path / "out")["corruptions"] == results(out)["corruptions"]


def test_several_classes_of_an_image_have_an_average_precision(model, shards, tmp_path, capsys):
    targets = np.random.default_rng(0).integers(0, 2, (16, 10), dtype=np.uint8)
    targets[:, 4] = 0
    images = EvalSet(shards)
    with tarfile.open(tmp_path / "several.tar", "w") as file:
        for header, own in zip(images.headers, targets, strict=True):
            data = images.shards.open(header.reference.shard).image(header.reference.member)
            label = json.dumps({"all": np.flatnonzero(own).tolist()}).encode()
            for name, content in (("png", data), ("json", label)):
                member = tarfile.TarInfo(f"{header.key}.{name}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    flags = ["--shards", str(tmp_path / "several.tar"), "--multi-label", "--label-field", "json:all"]
    for loss in ("sigmoid", "softmax"):
        out = tmp_path / loss
        command = ["eval", model, *flags, *FLAGS, "--loss", loss, "--save-predictions", "--out", str(out)]
        assert dispatch([*command, "--tokens", "9"]) == 0
        found = predictions(out)
        for row in results(out)["rows"]:
            logits = torch.from_numpy(found[f"logits/{row['setting']}"]).double()
            scores = (logits.sigmoid() if loss == "sigmoid" else logits.softmax(1)).numpy()
            slow = [average_precision_score(targets[:, c], scores[:, c]) for c in range(10) if c != 4]
            assert row["average_precision"] == pytest.approx(np.mean(slow))
            assert {row[name] for name in ("accuracy", "accuracy_low", "nll", "class_accuracy")} == {None}
        assert len(results(out)["rows"]) == 3
        assert "Average precision by setting" in capsys.readouterr().out
        assert (out / "report.html").exists()


def test_mistakes_get_one_sentence(model, shards, tmp_path, capsys):
    def file(name: str, content) -> str:
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    good = file("good.json", LABEL_MAP)
    base = ["eval", model, "--shards", shards, *FLAGS, "--out", str(tmp_path / "out")]
    base += ["--sets", f"a={shards}"]
    for flags, what in (
        (["--label-map", "a"], "--label-map 'a' must be NAME=FILE"),
        (["--label-map", f"b={good}"], "'b' is not one of the sets of --sets (a)"),
        (["--label-sets", f"main={good}"], "'main' is not one of the sets of --sets (a)"),
        (["--label-map", f"a={good}", f"a={good}"], "--label-map gives a two files"),
        (["--label-map", f"a={good}", "--label-sets", f"a={good}"], "both say what the labels of a are"),
        (["--label-map", f"a={tmp_path / 'none.json'}"], "none.json"),
        (["--label-sets", f"a={tmp_path / 'none.json'}"], "none.json"),
        (["--label-map", f"a={file('high.json', {'0': 10})}"], "high.json: label 0 has class 10"),
        (["--label-map", f"a={file('short.json', [1, 2])}"], "short.json has labels 0..1, but sample"),
        (["--label-map", f"a={file('few.json', {'77': 1})}"], "few.json has no class for its label"),
        (["--label-sets", f"a={file('tall.json', {'s00': [3, 10]})}"], "tall.json: entry 's00' has class 10"),
        (["--label-sets", f"a={file('list.json', [[1]])}"], "list.json has 1 entries for 16 images"),
        (["--label-sets", f"a={file('keys.json', {'x': [1]})}"], "keys.json has a label for none of"),
        (["--corruptions", "rain"], "'rain' is not a corruption"),
        (["--corruptions", "fog:6"], "'fog:6' is not of the form"),
        (["--corruptions", "fog", "--sets", f"fog-3={shards}"], "fog-3 is the name of a corrupted set"),
        (["--corruptions", "fog", "--multi-label"], "several labels (multi_label) do not have"),
    ):
        assert dispatch([*base, *flags]) == 2, what
        error = capsys.readouterr().err
        assert error.startswith("packvit: error: ")
        assert error.count("\n") == 1
        assert what in error, (what, error)
    assert not (tmp_path / "out").exists()


def test_features_of_two_evaluations_are_probed(model, digits_set, shards, tmp_path):
    for name, source in (("train", str(digits_set / "train/shard-000000.tar")), ("val", shards)):
        command = ["eval", model, "--shards", source, *FLAGS, "--features", "--out", str(tmp_path / name)]
        assert dispatch(command) == 0
    out = tmp_path / "probe.json"
    sets = [str(tmp_path / "train"), str(tmp_path / "val")]
    assert dispatch(["probe", *sets, "--shots", "1", "--knn", "3", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["images"] == {"train": 40, "test": 16}
    assert sorted(row["setting"] for row in found["rows"]) == sorted(SETTINGS)
    assert dispatch(["probe", sets[0], sets[0], "--shots", "--knn", "1", "--out", str(out)]) == 0
    assert {row["knn"] for row in json.loads(out.read_text())["rows"]} == {1.0}  # each finds itself
