"""The report: what it holds, that it needs nothing from outside, and that names in it stay names."""

import base64
import hashlib
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packvit.cli import dispatch
from packvit.data import Shard, ShardSet
from packvit.data.samples.decode import read_native_size
from packvit.evaluate import ShardPictures, write_report
from packvit.evaluate.page.style import SCRIPT
from packvit.evaluate.setting import Setting
from packvit.packing import decode_upright

VOID = {"meta", "img", "input", "br", "link"}
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\ud800\x00'&amp;]]>"
EMPTY = ("tokens", "top5", "brier", "average_precision", "memory_mb")  # of a row, unless a test fills them


class Page(HTMLParser):
    """A parsed page; parsing fails where a tag is closed that is not open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_row(setting: Setting, accuracy: float, **changes: Any) -> dict[str, Any]:
    tokens = (setting.side / setting.patch_size) ** 2
    row = {
        "setting": setting.name,
        "set": "main",
        "resolution": round(setting.side),
        "patch_size": setting.patch_size,
        "tokens": setting.tokens,
        "protocol": setting.protocol,
        "images": 30,
        "tokens_per_image": tokens,
        "gflops_per_image": tokens / 7,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.0123,
        "accuracy_high": accuracy + 0.0234,
        "nll": 1.2345,
        "ece": 0.056,
        "temperature": 1.37,
        "nll_calibrated": 1.1,
        "ece_calibrated": 0.034,
        "images_per_s": 1e4 / tokens,
        "latency_ms_p50": 1 + tokens / 100,
        "latency_ms_p99": 2 + tokens / 50,
        "latency_tokens": round(tokens),
        "class_accuracy": [0.9, None, 0.25, *[accuracy] * 7],
    }
    return {**row, **dict.fromkeys(EMPTY), **changes}


def make_predictions(
    keys: list[str], shard: str, names: list[str], classes: int = 10
) -> dict[str, np.ndarray]:
    """Of one model: every third image is wrong, all others are right."""
    rng = np.random.default_rng(0)
    n = len(keys)
    labels = np.arange(n) % classes
    arrays = {
        "keys": np.array(keys),
        "shards": np.array([shard] * n),
        "labels": labels,
        "fit_half": np.arange(n) % 2 == 0,
    }
    for name in names:
        arrays[f"prediction/{name}"] = np.where(np.arange(n) % 3, labels, (labels + 1) % classes)
        arrays[f"confidence/{name}"] = rng.random(n, dtype=np.float32)
    return arrays


def write_folder(folder: Path, rows: list[dict], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"width": 64, "depth": 4}
    results = {
        "model": {
            "path": "runs/digits",
            "hash": "ab" * 32,
            "loss": "softmax",
            "num_classes": 10,
            "config": config,
        },
        "device": {"name": "one core", "threads": 1},
        "classes": [f"digit {n}" for n in range(10)],
        "rows": rows,
    }
    (folder / "results.json").write_text(json.dumps({**results, **changes}))
    return folder


def grid(
    accuracy: Callable[[int, int], float] = lambda r, p: 0.5 + r / 200 - p / 100, **changes
) -> list[dict]:
    rows = [make_row(Setting(p, r), accuracy(r, p), **changes) for p in (4, 8, 16) for r in (32, 48, 64)]
    return [
        *rows,
        make_row(Setting(4, tokens=64), 0.6, **changes),
        make_row(Setting(8, 48, protocol="square"), 0.5),
    ]


@pytest.fixture(scope="module")
def shard(digits_set) -> str:
    return str(sorted((digits_set / "val").glob("*.tar"))[0])


@pytest.fixture
def folder(tmp_path, shard) -> Path:
    """An evaluation of the demo's validation images, with predictions, another set and skipped images."""
    rows = grid()
    rows += [{**row, "set": "dark", "accuracy": row["accuracy"] / 2} for row in rows]
    folder = write_folder(tmp_path / "eval", rows)
    opened = Shard.open(shard)
    keys = [opened.key(member) for member in range(len(opened))]
    np.savez(
        folder / "predictions.npz",
        allow_pickle=False,
        **make_predictions(keys, shard, [row["setting"] for row in rows]),
    )
    skipped = [
        {"shard": shard, "key": f"broken-{n}", "reason": f"it has no .{'cls' if n else 'jpg'}"}
        for n in range(3)
    ]
    (folder / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in skipped))
    return folder


def test_the_page_is_whole_and_needs_nothing_from_outside(folder, shard):
    path = write_report(folder, ShardPictures(ShardSet.find(shard)))
    assert path == folder / "report.html"
    page = Page(path)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(names)) == len(names)
    addresses = [a[key] for _, a in page.tags for key in ("src", "href") if a.get(key)]
    assert {a[1:] for a in addresses if a[0] == "#"} <= set(names)
    assert all(a[0] == "#" or a.startswith(("data:image/png;", "data:image/jpeg;")) for a in addresses)
    assert "://" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source
    for svg in (attributes for attributes in page.of("svg") if attributes.get("role") == "img"):
        assert svg["aria-label"]
    headings = ["Accuracy over compute", "The grid of settings", "Cost on this machine", "Other sets"]
    headings += ["Calibration", "What is taken for what", "Accuracy of each class", "The worst images"]
    headings += ["Skipped images", "All settings"]
    assert all(heading in page.texts for heading in headings)


def test_the_policy_allows_the_script_of_the_page_and_no_other(folder):
    page = Page(write_report(folder))
    assert page.scripts == [SCRIPT]
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_number_of_every_row_is_there(folder):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    page = Page(write_report(folder))
    found = {float(a["data-v"]) for a in page.of("td") if a.get("data-v")}
    for row in rows:
        assert {value for value in row.values() if isinstance(value, int | float)} <= found
        assert row["setting"] in page.texts
    best = max((row for row in rows if row["set"] == "main"), key=lambda row: row["accuracy"])
    assert {value for value in best["class_accuracy"] if value is not None} <= found


def test_the_headline_names_the_best_and_the_cheapest_close_to_it(tmp_path):
    values = {(64, 4): 0.95, (64, 8): 0.94, (48, 8): 0.9405, (32, 8): 0.9399}
    rows = grid(lambda r, p: values.get((r, p), 0.3))
    text = Page(write_report(write_folder(tmp_path, rows))).text
    assert "Best accuracy: r64-p4, 95.0 % (93.8 to 97.3) with 256 tokens and 36.6 GFLOPs an image." in text
    assert (
        "Cheapest within 1 point of it: r48-p8, 94.0 % (92.8 to 96.4) with 36 tokens and 5.14 GFLOPs" in text
    )
    assert "that is 86 % less compute" in text


def test_the_same_folder_gives_the_same_page(folder, shard):
    first = write_report(folder, ShardPictures(ShardSet.find(shard))).read_bytes()
    assert write_report(folder, ShardPictures(ShardSet.find(shard))).read_bytes() == first


def test_hostile_names_stay_names(tmp_path, shard):
    rows = grid()
    rows += [{**rows[0], "set": HOSTILE, HOSTILE: 1.0, "protocol": "native"}]
    config = {"width": HOSTILE, "depth": HOSTILE}
    model = {"path": HOSTILE, "hash": HOSTILE, "loss": HOSTILE, "num_classes": 10, "config": config}
    folder = write_folder(
        tmp_path, rows, model=model, device={"name": HOSTILE, "threads": 1}, classes=[HOSTILE] * 10
    )
    arrays = make_predictions([HOSTILE.rstrip("\x00")] * 30, shard, [row["setting"] for row in rows])
    np.savez(folder / "predictions.npz", allow_pickle=False, **{**arrays, "shards": np.array([HOSTILE] * 30)})
    (folder / "skipped.jsonl").write_text(
        json.dumps({"shard": HOSTILE, "key": HOSTILE, "reason": HOSTILE}) + "\n"
    )
    page = Page(write_report(folder, ShardPictures(ShardSet.find(shard))))
    assert page.scripts == [SCRIPT]
    assert not page.of("img")
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 30
    assert not set("\u202e\x00") & set(page.source)


def test_keys_that_are_no_text_are_written(folder):
    arrays = dict(np.load(folder / "predictions.npz"))
    arrays["keys"] = np.array([f"caf\udce9-{n}" for n in range(len(arrays["keys"]))])
    np.savez(folder / "predictions.npz", allow_pickle=False, **arrays)
    assert "caf\ufffd-3" in Page(write_report(folder)).text


@pytest.mark.parametrize("kept", [("patch_size", "resolution"), ("patch_size", "resolution", "accuracy")])
def test_values_that_do_not_exist_are_left_out(tmp_path, kept):
    """Settings alone, then with an accuracy that has neither interval nor cost."""
    rows = [
        {key: value if key in ("setting", "set", *kept) else None for key, value in row.items()}
        for row in grid()
    ]
    model = dict.fromkeys(("path", "hash", "loss", "num_classes", "config"))
    folder = write_folder(tmp_path, rows, model=model, device={"name": None, "threads": None}, classes=None)
    text = Page(write_report(folder)).text
    assert "None" not in text
    assert "nan" not in text
    assert "r64-p4" in text
    assert ("No setting has an accuracy" in text) == ("accuracy" not in kept)


def test_one_value_missing_anywhere_breaks_nothing(folder):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    for field in set(rows[0]) - {"setting", "set", "patch_size", "resolution", "protocol"}:
        changed = [{**row, field: None} if n % 2 else row for n, row in enumerate(rows)]
        assert "None" not in Page(write_report(write_folder(folder, changed))).text


def test_sets_of_several_labels_are_compared_by_average_precision(tmp_path):
    rows = grid(accuracy_low=None, accuracy_high=None, class_accuracy=None)
    rows = [{**row, "average_precision": row["accuracy"], "accuracy": None} for row in rows]
    assert (
        "Best average precision: r64-p4, 78.0 % with" in Page(write_report(write_folder(tmp_path, rows))).text
    )


def test_models_stand_side_by_side(tmp_path, shard):
    rows = [{**row, "model": "large"} for row in grid()]
    rows += [{**row, "model": "small", "accuracy": row["accuracy"] - 0.1} for row in grid()]
    models = [{"name": name, "path": f"runs/{name}", "hash": name * 4} for name in ("small", "large")]
    folder = write_folder(tmp_path, rows, model=models)
    for name in ("large", "small"):
        arrays = make_predictions([f"{name}-{n}" for n in range(30)], shard, [row["setting"] for row in rows])
        np.savez(folder / f"predictions-{name}.npz", allow_pickle=False, **arrays)
    page = Page(write_report(folder))
    assert "Best accuracy: large at r64-p4" in page.text
    assert "Models side by side" in page.texts
    assert "large-3" in page.text
    assert "small-3" not in page.text
    place = page.texts.index("Models side by side")
    assert page.texts.index("largelargela", place) < page.texts.index("smallsmallsm", place)


def test_confusion_counts_what_predictions_say(folder):
    text = Page(write_report(folder)).text
    arrays = np.load(folder / "predictions.npz")
    labels, taken = arrays["labels"], arrays["prediction/r64-p4"]
    assert f"r64-p4 is wrong about {(labels != taken).sum()} of 30 images" in text
    for label in range(3):
        number = ((labels == label) & (taken == label + 1)).sum()
        assert (
            f"digit {label} taken for digit {label + 1}: {number} image"
            in (folder / "report.html").read_text()
        )


# ---- pictures ----


def test_pictures_are_those_of_the_shards(shard):
    opened = Shard.open(shard)
    pictures = ShardPictures(ShardSet.find(shard))
    for member in (0, 7):
        expected = decode_upright(opened.image(member), read_native_size(opened, member))
        np.testing.assert_array_equal(pictures(shard, opened.key(member)), expected)
        np.testing.assert_array_equal(pictures(f"moved/{Path(shard).name}", opened.key(member)), expected)
    with pytest.raises(ValueError, match="not one of the shards"):
        pictures("other.tar", opened.key(0))
    with pytest.raises(ValueError, match="has no sample 'missing'"):
        pictures(shard, "missing")


def test_the_surest_errors_are_shown_with_their_patches(folder, shard):
    page = Page(write_report(folder, ShardPictures(ShardSet.find(shard))))
    arrays = np.load(folder / "predictions.npz")
    wrong = np.flatnonzero(arrays["labels"] != arrays["prediction/r64-p4"])
    order = wrong[np.argsort(-arrays["confidence/r64-p4"][wrong])]
    shown = [text for text in page.texts if text in set(arrays["keys"].tolist())]
    assert shown == arrays["keys"][order].tolist()
    borders = [a["d"] for a in page.of("path") if a.get("class") == "patches"]
    opened = Shard.open(shard)
    members = {opened.key(member): member for member in range(len(opened))}
    for key, lines in zip(shown, borders, strict=True):
        rows, cols = Setting(4, 64).view(read_native_size(opened, members[key])).grid
        assert (lines.count("V"), lines.count("H")) == (cols - 1, rows - 1)


def test_a_picture_that_cannot_be_read_is_said_to_be_missing(folder, tmp_path, shard):
    def gone(shard: str, key: str) -> np.ndarray:
        raise OSError(f"{key} is gone")

    page = Page(write_report(folder, gone))
    assert "val-000003 is gone" in page.text
    assert not page.of("image")


# ---- limits ----


def test_the_page_stays_below_5_mb(tmp_path):
    rng = np.random.default_rng(0)
    sides = range(32, 32 + 8 * 25, 8)
    rows, classes, long = [], 1000, "a name of a class that goes on and on " * 10
    for model in ("one", "two"):
        for p in (4, 6, 8, 10, 12, 14, 16, 20, 24, 32):
            for r in sides:
                values = dict.fromkeys(EMPTY[1:], 0.123456789)
                rows.append(make_row(Setting(p, r), 0.3 + 0.4 * float(rng.random()), model=model, **values))
    best = max(rows, key=lambda row: row["accuracy"])
    best["class_accuracy"] = rng.random(classes).tolist()
    assert len(rows) == 500
    rows += [{**rows[0], "set": f"set {n}", "class_accuracy": None} for n in range(1000)]
    models = [{"name": name, "path": long} for name in ("one", "two")]
    folder = write_folder(tmp_path, rows, model=models, classes=[f"{n} {long}" for n in range(classes)])
    arrays = make_predictions([f"{n} {long}" for n in range(5000)], long, [best["setting"]], classes)
    np.savez(folder / f"predictions-{best['model']}.npz", allow_pickle=False, **arrays)
    lines = ({"shard": long, "key": f"{n} {long}", "reason": f"{n} {long}"} for n in range(5000))
    (folder / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def noise(shard: str, key: str) -> np.ndarray:
        return np.random.default_rng(len(key)).integers(0, 256, (600, 600, 3), np.uint8)

    page = write_report(folder, noise).read_bytes()
    assert page.count(b"<image ") == 24
    assert 2e6 < len(page) < 5e6


# ---- bad input, and the command ----

NPY = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (0,), }".ljust(127) + b"\n"


def test_bad_folders_are_named_in_a_sentence(folder, tmp_path, capsys):
    results, predictions = folder / "results.json", folder / "predictions.npz"
    arrays, text = dict(np.load(predictions)), results.read_text()

    def change_array(name: str, values: Any) -> None:
        np.savez(predictions, allow_pickle=False, **{**arrays, name: values})

    def change(old: str, new: str) -> None:
        assert old in text
        results.write_text(text.replace(old, new, 1))

    for broken, words in (
        (lambda: change_array("labels", np.int64(3)), "'labels' has the wrong shape or type"),
        (lambda: change_array("labels", arrays["labels"] / 2), "'labels' has the wrong shape or type"),
        (lambda: change_array("keys", arrays["keys"][:5]), "'keys' has the wrong shape or type"),
        (
            lambda: change_array("prediction/r64-p4", arrays["prediction/r64-p4"] - 1),
            "has classes that the model does not have",
        ),
        (lambda: predictions.write_bytes(NPY), "predictions.npz is damaged"),
        (lambda: predictions.write_bytes(b"PK\x03\x04 no zip"), "predictions.npz is damaged"),
        (
            lambda: np.savez(predictions, allow_pickle=False, **{"prediction/r64-p4": [1]}),
            "predictions.npz lacks",
        ),
        (
            lambda: results.write_text('{"rows": [{"resolution": 3}]}'),
            "rows[0]: field 'patch_size' is missing",
        ),
        (lambda: results.write_text("[1]"), "results.json is damaged: it holds a list"),
        (lambda: results.write_text("{"), "results.json is damaged"),
        (lambda: results.write_text('{"rows": [1]}'), "rows[0] must be an object"),
        (lambda: change('"accuracy": 0.', '"accuracy": NaN, "x": 0.'), "NaN is not a JSON value"),
        (lambda: change('"accuracy": 0.', '"accuracy": "high", "x": 0.'), "'accuracy' must be a number"),
        (lambda: change('"resolution": 32', '"resolution": null'), "'resolution' must be a whole number"),
        (lambda: change('"device": {', '"device": 3, "x": {'), "'device' must be an object"),
        (lambda: change('"classes": [', '"classes": {}, "x": ['), "'classes' must be a list"),
        (lambda: change('"model": {', '"model": "x", "x": {'), "'model' must be an object"),
        (results.unlink, "has no results.json"),
    ):
        broken()
        assert dispatch(["report", str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_the_command_writes_the_page_again(folder, shard, capsys):
    assert dispatch(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert str(folder / "report.html") in printed
    assert "no pictures" in printed
    assert not Page(folder / "report.html").of("image")
    assert dispatch(["report", str(folder), "--shards", shard]) == 0
    assert len(Page(folder / "report.html").of("image")) == 10
    assert dispatch(["report", str(folder), "--shards", "none.tar"]) == 2
    assert "none.tar: no such shard" in capsys.readouterr().err
