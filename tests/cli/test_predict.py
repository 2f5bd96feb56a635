"""`packvit predict`: every image gets its line, in order, whatever the images are called and however they
come."""

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from packvit.cli import dispatch
from packvit.data import FetchConfig, Shard
from packvit.evaluate import Prediction, Predictor
from packvit.evaluate.predict import sources as sources_module
from packvit.evaluate.predict.predictor import WINDOW, cut_windows
from packvit.evaluate.predict.read import Break
from packvit.evaluate.predict.sources import Found, Place
from packvit.models import PackedViT, ViTConfig, save_model

SETTING = ["--resolution", "16", "--patch-size", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    vit = PackedViT(ViTConfig(width=32, depth=1, heads=2, num_classes=10))
    assert vit.head is not None
    torch.nn.init.normal_(vit.head.weight)
    run = save_model(vit, tmp_path_factory.mktemp("model"))
    (run / "classes.json").write_text(json.dumps([f"digit {i}" for i in range(10)]))
    return str(run)


@pytest.fixture(scope="module")
def photos(digits_set, tmp_path_factory) -> Path:
    """Nine images in folders, and files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    shard = Shard.open(digits_set / "val/shard-000000.tar")
    for member, name in enumerate(["b/2.jpg", "b/10.JPEG", "a.jpg", "c/d/e.png", "with space.jpg", "é.jpg"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(shard.image(member))
    (folder / "b/notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def names(photos) -> list[str]:
    """Of the images in `photos`, as they should come."""
    return [
        str(photos / n) for n in ("a.jpg", "b/10.JPEG", "b/2.jpg", "c/d/e.png", "with space.jpg", "é.jpg")
    ]


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def expect(model: str, names: list[str]) -> list[dict]:
    """What the predictor says, as lines."""
    answers: list[Prediction] = Predictor(model, resolution=16, patch_size=8)(names)
    return [
        {"image": name, "labels": list(a.labels), "scores": list(a.scores), "names": list(a.names or ())}
        for name, a in zip(names, answers, strict=True)
    ]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert [{**line, "scores": None} for line in found] == [{**line, "scores": None} for line in expected]
    for a, b in zip(found, expected, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=2e-6)


@pytest.fixture
def feed(monkeypatch):
    """feed(data): standard input."""

    def give(data: bytes | io.RawIOBase) -> None:
        raw = io.BytesIO(data) if isinstance(data, bytes) else io.BufferedReader(data)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))

    return give


# ---- where images come from ----


def test_folders_globs_files_and_standard_input_name_the_same_images(
    model, photos, names, feed, capsys, tmp_path
):
    ways = [
        [str(photos)],
        [str(photos / "a.jpg"), str(photos / "b/*.[jJ]*"), str(photos / "c"), *names[4:]],
        names,
        ["-"],
        ["-", "-0"],
    ]
    for way in ways:
        feed((b"\0" if "-0" in way else b"\n").join(name.encode() for name in [*names, ""]))
        assert dispatch(["predict", model, *way, *SETTING]) == 0
        printed = capsys.readouterr()
        assert_same(lines(printed.out), expect(model, names))
        assert "Setting r16-p8" in printed.err
        assert "6 images, 0 broken" in printed.err


def test_shards_name_their_samples_and_folders_hold_shards_too(model, digits_set, photos, capsys, tmp_path):
    shutil.copytree(photos / "c", tmp_path / "all/c")
    shutil.copy(digits_set / "val/shard-000000.tar", tmp_path / "all/b{1}.tar")
    path = str(tmp_path / "all/b{1}.tar")
    shard = Shard.open(path)
    keys = [f"{path}/{shard.key(member)}" for member in range(len(shard))]
    assert dispatch(["predict", model, path, *SETTING]) == 0
    alone = lines(capsys.readouterr().out)
    assert [line["image"] for line in alone] == keys
    answers = Predictor(model, resolution=16, patch_size=8)([shard.image(i) for i in range(len(shard))])
    assert [line["labels"] for line in alone] == [list(answer.labels) for answer in answers]
    assert dispatch(["predict", model, str(tmp_path / "all"), *SETTING]) == 0
    both = lines(capsys.readouterr().out)
    assert_same(both[:-1], alone)
    assert both[-1]["image"] == str(tmp_path / "all/c/d/e.png")


def test_answers_are_those_of_an_evaluation(model, digits_set, tmp_path, capsys):
    val = str(digits_set / "val")
    flags = [
        "--resolutions",
        "16",
        "--patch-sizes",
        "8",
        "--protocol",
        "crop:0.75",
        "--no-cost",
        "--workers",
        "0",
    ]
    command = ["eval", model, "--shards", val, *flags, "--device", "cpu", "--out", str(tmp_path / "run/eval")]
    assert dispatch(command) == 0
    with np.load(tmp_path / "run/eval/predictions.npz") as found:
        keys, prediction, confidence = (
            found[name].tolist()
            for name in ("keys", "prediction/r16-p8-crop0.75", "confidence/r16-p8-crop0.75")
        )
    for path in Path(model).iterdir():
        shutil.copy(path, tmp_path / "run")
    capsys.readouterr()
    assert dispatch(["predict", str(tmp_path / "run"), val, "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "Setting r16-p8-crop0.75, the most accurate" in printed.err
    answers = {line["image"].rpartition("/")[2]: line for line in lines(printed.out)}
    assert sorted(answers) == sorted(keys)
    assert [answers[key]["labels"][0] for key in keys] == prediction
    assert [answers[key]["scores"][0] for key in keys] == pytest.approx(confidence, abs=2e-6)


def test_broken_images_are_named_and_the_rest_is_done(model, photos, names, feed, capsys, tmp_path):
    (tmp_path / "broken.jpg").write_bytes((photos / "a.jpg").read_bytes()[:150])
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    none = str(tmp_path / "none.jpg")
    feed(f"{none}\npipe:touch {tmp_path}/made\n{names[0]}\n".encode())
    images = [names[0], str(tmp_path), names[1], "-", names[2]]
    assert dispatch(["predict", model, *images, *SETTING, "--batch-tokens", "5"]) == 1
    printed = capsys.readouterr()
    found = lines(printed.out)
    assert "8 images, 4 broken" in printed.err
    assert_same(
        [line for line in found if "error" not in line], expect(model, [*names[:2], names[0], names[2]])
    )
    errors = {line["image"]: line["error"] for line in found if "error" in line}
    assert [line["image"] for line in found if "error" in line] == list(errors)
    assert list(errors) == [
        str(tmp_path / "broken.jpg"),
        str(tmp_path / "broken.tar"),
        none,
        f"pipe:touch {tmp_path}/made",
    ]
    whys = zip(errors.values(), ("decoded", "not a readable tar", "No such file", "local files"), strict=True)
    assert all(what in why for why, what in whys)
    assert not (tmp_path / "made").exists()


# ---- where answers go ----


def test_all_formats_say_the_same(model, photos, names, feed, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    feed(f"{tmp_path}/none.jpg\n".encode())
    base = ["predict", model, str(photos), "-", *SETTING, "--top", "2", "--features"]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        feed(f"{tmp_path}/none.jpg\n".encode())
        assert dispatch([*base, "--out", str(tmp_path / "sub" / name)]) == 1
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["a.csv", "a.jsonl", "a.parquet"]
    wanted = lines((tmp_path / "sub/a.jsonl").read_text())
    assert [line["image"] for line in wanted] == [*names, f"{tmp_path}/none.jpg"]
    assert len(wanted[0]["features"]) == 32
    table = pq.read_table(tmp_path / "sub/a.parquet")
    with (tmp_path / "sub/a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == table.column_names
    assert list(rows[0])[:7] == ["image", "label_1", "score_1", "name_1", "label_2", "score_2", "name_2"]
    for line, row, other in zip(wanted, rows, table.to_pylist(), strict=True):
        assert row["image"] == other["image"] == line["image"]
        if "error" in line:
            assert row["error"] == other["error"] == line["error"]
            assert row["label_1"] == ""
            assert other["label_1"] is None
            continue
        assert other["error"] is None
        for place in (1, 2):
            label, score, name = (line[kind][place - 1] for kind in ("labels", "scores", "names"))
            assert (int(row[f"label_{place}"]), row[f"name_{place}"]) == (label, name)
            assert (other[f"label_{place}"], other[f"name_{place}"]) == (label, name)
            assert float(row[f"score_{place}"]) == other[f"score_{place}"] == score
        features = line["features"]
        assert [float(row[f"feature_{i}"]) for i in range(32)] == features
        assert [other[f"feature_{i}"] for i in range(32)] == features


def test_a_terminal_gets_a_table(model, names, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert dispatch(["predict", model, names[0], *SETTING, "--top", "2"]) == 0
    (line,) = expect(model, names[:1])
    (shown,) = terminal.getvalue().splitlines()
    assert shown.split("%")[0].split() == [names[0], f"{100 * line['scores'][0]:.1f}"]
    assert all(name in shown for name in line["names"][:2])


def test_names_that_are_no_unicode_stay_what_they_are(model, photos, tmp_path, capsys):
    path = os.fsencode(tmp_path) + b"/\xff.jpg"
    shutil.copy(photos / "a.jpg", path)
    name = os.fsdecode(path)
    assert dispatch(["predict", model, str(tmp_path), *SETTING]) == 0
    assert lines(capsys.readouterr().out)[0]["image"] == name
    assert dispatch(["predict", model, str(tmp_path), *SETTING, "--out", str(tmp_path / "a.csv")]) == 0
    assert path in (tmp_path / "a.csv").read_bytes()


# ---- the end ----


class Interrupted(io.RawIOBase):
    """Names, and then Ctrl-C."""

    def __init__(self, names: list[str]) -> None:
        self.blocks: Iterator[bytes] = iter([f"{name}\n".encode() for name in names])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        block = next(self.blocks, None)
        if block is None:
            raise KeyboardInterrupt
        buffer[: len(block)] = block
        return len(block)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_an_interrupted_run_keeps_its_answers_under_another_name(name, model, names, feed, tmp_path, capsys):
    out, partial = tmp_path / name, tmp_path / f".{name}.partial"
    out.write_text("of before")
    feed(Interrupted(names * 3))
    command = ["predict", model, "-", *SETTING, "--out", str(out), "--batch-tokens", "8", "--workers", "1"]
    assert dispatch(command) == 130
    assert f"the answers so far are in {partial}" in capsys.readouterr().err
    assert out.read_text() == "of before"
    if name.endswith(".parquet"):
        found = pytest.importorskip("pyarrow.parquet").read_table(partial)["image"].to_pylist()
    elif name.endswith(".csv"):
        found = [row["image"] for row in csv.DictReader(partial.read_text().splitlines())]
    else:
        found = [line["image"] for line in lines(partial.read_text())]
    assert len(found) > 5
    assert found == (names * 3)[: len(found)]
    feed(names[0].encode())
    assert dispatch(command) == 0
    assert not partial.exists()
    assert out.read_bytes() != b"of before"


def test_a_reader_that_goes_away_ends_it_quietly(model, names, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert dispatch(["predict", model, *names, *SETTING]) == 141
    assert capsys.readouterr().err == "Setting r16-p8, as asked.\n"


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["PHOTOS", "--out", "TMP/a.txt"], "must end in one of .jsonl, .csv, .parquet"),
        (["PHOTOS", "--out", "TMP/file/a.csv"], "cannot be written to"),
        (["PHOTOS", "--out", "TMP/folder.csv"], "is a folder"),
        (["TMP/none.jpg"], "TMP/none.jpg: no such image"),
        (["TMP/*.jpg"], "TMP/*.jpg: no such image"),
        (["TMP/none.tar"], "TMP/none.tar: no such shard"),
        (["PHOTOS", "TMP/empty"], "no image is in TMP/empty"),
        ([], "no images are named"),
        (["-"], "standard input has no names"),
        (["-", "-"], "named twice"),
        (["PHOTOS"], "no model at TMP/model"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_model_is_read(
    arguments, what, photos, feed, tmp_path, capsys
):
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty/below").mkdir(parents=True)
    feed(b"\n\n")
    paths = [a.replace("PHOTOS", str(photos)).replace("TMP", str(tmp_path)) for a in arguments]
    assert dispatch(["predict", str(tmp_path / "model"), *paths]) == 2
    error = capsys.readouterr().err
    assert what.replace("TMP", str(tmp_path)) in error
    assert len(error.splitlines()) == 1


def test_without_standard_input_it_has_no_names(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it where the shell closed it
    assert dispatch(["predict", str(tmp_path / "model"), "-"]) == 2
    assert "standard input has no names" in capsys.readouterr().err


def test_settings_and_torchrun_are_refused_in_a_sentence(model, photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "plan.json").write_text("{}")
    for flags, what in (
        (["--plan", str(tmp_path / "plan.json")], "plan.json: field 'model' is missing"),
        (["--plan", str(tmp_path / "plan.json"), "--tokens", "9"], "a plan sets"),
        (["--patch-size", "8"], "patch_size=8 alone"),
    ):
        assert dispatch(["predict", model, str(photos), *flags]) == 2
        error = capsys.readouterr().err
        assert what in error
        assert len(error.splitlines()) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert dispatch(["predict", model, str(photos), *SETTING]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_without_pyarrow_it_says_what_to_install(model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert dispatch(["predict", model, str(photos), "--out", str(tmp_path / "a.parquet")]) == 2
    assert "pip install 'packvit[parquet]'" in capsys.readouterr().err


def test_an_answer_depends_on_its_own_shard_alone_to_the_last_bit(model, digits_set, tmp_path):
    """The shard stands alone, behind files that fill a batch in part, and behind another shard."""
    shard, other = digits_set / "val/shard-000000.tar", digits_set / "train/shard-000000.tar"
    (tmp_path / "photo.png").write_bytes(Shard.open(other).image(0))
    command = ["predict", model, "--resolution", "48", "--patch-size", "8", "--device", "cpu", "--features"]
    command += ["--batch-tokens", "200", "--out"]
    found = []
    for number, before in enumerate(([], [tmp_path / "photo.png"], [other])):
        out = tmp_path / f"{number}.jsonl"
        assert dispatch([*command, str(out), *map(str, before), str(shard)]) == 0
        found.append(out.read_bytes().splitlines()[-30:])
    assert found[0] == found[1] == found[2]


def test_parts_are_shards_and_so_many_files_in_a_row(monkeypatch):
    monkeypatch.setattr(sources_module, "FILES", 2)
    places = [Place(name) for name in ("a.jpg", "b.jpg", "c.jpg", "d.tar", "e.tar", "f.jpg")]
    places.append(Place("g.tar", "it is not there"))  # no more than a file that is broken
    parts = list(Found(iter(places), None, FetchConfig()).parts())
    assert [[place.path for place in part] for part in parts] == [
        ["a.jpg", "b.jpg"],
        ["c.jpg"],
        ["d.tar"],
        ["e.tar"],
        ["f.jpg", "g.tar"],
    ]


def test_a_cascade_takes_no_images_from_both_sides_of_a_break():
    between = Break.BREAK
    assert list(cut_windows([between, "a", "b", between, between, "c"])) == [["a", "b"], ["c"]]
    assert list(cut_windows([between])) == []
    assert list(map(len, cut_windows(["a"] * (WINDOW + 1)))) == [WINDOW, 1]
