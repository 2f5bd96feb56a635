"""Labels of every kind: what is read, what is refused by name, and what training makes of them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from webdataset.writer import TarWriter

from packvit.cli import dispatch
from packvit.common.json_lines import read_json_lines
from packvit.data import (
    BadSample,
    ClassTarget,
    DataConfig,
    DataPlan,
    EvalSet,
    MixConfig,
    Shard,
    TrainLoader,
    check_shards,
)
from packvit.evaluate import Setting
from packvit.evaluate.results import read_results_file
from packvit.packing import Flat, Mixed, PackedBatch, PackingConfig, ResolutionConfig, ViewsConfig
from packvit.train.config import Config, TrainConfig
from packvit.train.tasks.classification import Classification, classification_loss, mixed_labels

VIEWS = ViewsConfig((4,), resolution=ResolutionConfig(16, 16))
PACKING = PackingConfig(seq_len=64, sequences=2, lookahead=4, balance=1)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(path: Path, samples: list[dict[str, bytes]]) -> Path:
    """A shard of samples s00, s01, ... with these fields and a picture of noise each."""
    rng = np.random.default_rng(0)
    with TarWriter(str(path), encoder=False) as writer:
        for i, fields in enumerate(samples):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "png")
            writer.write({"__key__": f"s{i:02d}", "png": buffer.getvalue(), **fields})
    return path


def read(tmp_path: Path, labels: ClassTarget, fields: dict[str, bytes]) -> Any:
    label = labels.read(Shard.open(write(tmp_path / "one.tar", [fields])), 0)
    return label.tolist() if isinstance(label, np.ndarray) else label


META = {"classes": [0, 2], "none": [], "name": "cat", "yes": True}
DOCUMENT = json.dumps({"label": 3, "meta": META}).encode()


@pytest.mark.parametrize(
    ("labels", "fields", "expected"),
    [
        (ClassTarget(classes=5), {"cls": b"4"}, 4),
        (ClassTarget("id", classes=5), {"id": b" 2\n", "cls": b"1"}, 2),
        (ClassTarget("json:label", classes=5), {"json": DOCUMENT}, 3),
        (ClassTarget("meta.json", classes=5), {"meta.json": b"1"}, 1),
        (ClassTarget("json:label", True, 4), {"json": DOCUMENT}, [0, 0, 0, 1]),
        (ClassTarget("json:meta.classes", True, 4), {"json": DOCUMENT}, [1, 0, 1, 0]),
        (ClassTarget("json:meta.none", True, 2), {"json": DOCUMENT}, [0, 0]),
        (ClassTarget("cls", True, 3), {"cls": b"1"}, [0, 1, 0]),
        (ClassTarget("targets.npy", True, 3), {"targets.npy": npy(np.array([1, 0, 1], np.uint8))}, [1, 0, 1]),
        (ClassTarget("npy", True, 2), {"npy": npy(np.array([0.25, 1.0]))}, [0.25, 1.0]),
        (ClassTarget("json:label"), {"json": DOCUMENT}, 3),
        (ClassTarget("json:other"), {"json": DOCUMENT}, None),
        (ClassTarget("json:meta.classes", True), {"json": DOCUMENT}, None),
    ],
)
def test_labels_are_read(tmp_path, labels, fields, expected):
    assert read(tmp_path, labels, fields) == expected


@pytest.mark.parametrize(
    ("labels", "fields", "reason"),
    [
        (ClassTarget("json:label", classes=3), {"json": DOCUMENT}, "its label 3 is not in 0..2"),
        (ClassTarget("json:meta.label", classes=3), {"json": DOCUMENT}, "it has no label"),
        (ClassTarget("json:label.deeper", classes=3), {"json": DOCUMENT}, "it has no label"),
        (ClassTarget("json:label", classes=3), {"cls": b"1"}, "it has no label"),
        (
            ClassTarget("json:meta.name", classes=3),
            {"json": DOCUMENT},
            "its label 'cat' is not a whole number",
        ),
        (
            ClassTarget("json:meta.yes", classes=3),
            {"json": DOCUMENT},
            "its label 'True' is not a whole number",
        ),
        (
            ClassTarget("json:meta.classes", classes=3),
            {"json": DOCUMENT},
            r"'\[0, 2\]' is not a whole number",
        ),
        (ClassTarget("json:meta.classes", True, 2), {"json": DOCUMENT}, "its label 2 is not in 0..1"),
        (ClassTarget("json:meta.name", True, 2), {"json": DOCUMENT}, "'cat' is not a list of whole numbers"),
        (ClassTarget("json:label", classes=3), {"json": b"{"}, "its .json is not a JSON document"),
        (ClassTarget("npy", True, 3), {"npy": npy(np.zeros(2))}, "its label has 2 classes, not 3"),
        (
            ClassTarget("npy", True, 3),
            {"npy": npy(np.zeros((1, 3)))},
            r"holds float64 \[1, 3\], not a vector",
        ),
        (
            ClassTarget("npy", True, 3),
            {"npy": npy(np.array([0, 2, 0]))},
            "not a vector of numbers from 0 to 1",
        ),
        (
            ClassTarget("npy", True, 3),
            {"npy": npy(np.array([0, np.nan, 0]))},
            "not a vector of numbers from 0 to 1",
        ),
        (ClassTarget("npy", True, 3), {"npy": b"no array"}, "its .npy is not a .npy file"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path, labels, fields, reason):
    with pytest.raises(BadSample, match=rf"one\.tar: sample 's00': .*{reason}"):
        read(tmp_path, labels, fields)


@pytest.mark.parametrize("field", ["", "CLS", "_cls", "a/b", "cls:label", "json:", "targets.npy"])
def test_fields_that_no_sample_can_have_are_refused(field):
    with pytest.raises(ValueError, match=r"data\.label_field="):
        DataConfig(label_field=field)


def take(path: Path, number: int, skipped: list[dict] | None = None, **fields: Any) -> list[PackedBatch]:
    data = DataConfig((str(path),), workers=0, streams=1, **fields)
    targets = {"label": data.class_target(4)} | data.text_targets()
    batches = iter(TrainLoader(DataPlan(data, VIEWS, PACKING, 0, targets)))
    taken = []
    for _ in range(number):
        loaded = next(batches)
        assert loaded.batch is not None
        taken.append(loaded.batch)
        if skipped is not None:
            skipped += loaded.skipped
    return taken


def test_batches_carry_a_target_for_every_class_and_captions(tmp_path):
    rng = np.random.default_rng(1)
    hot = rng.integers(0, 2, (9, 4)).astype(np.uint8)
    samples = [{"y.npy": npy(row), "txt": f" image {i}\n".encode()} for i, row in enumerate(hot)]
    samples += [{"y.npy": npy(hot[0])}, {"txt": b"unlabelled"}, {"y.npy": npy(hot[0]), "txt": b"\xff"}]
    path, skipped = write(tmp_path / "a.tar", samples), []
    fields = {"label_field": "y.npy", "multi_label": True, "caption_field": "txt"}
    for batch in take(path, 4, skipped, **fields):
        assert batch.labels is not None
        assert batch.labels.dtype == torch.uint8
        numbers = [int(key[1:]) for key in batch.keys]
        np.testing.assert_array_equal(batch.labels, hot[numbers])
        assert batch.targets["text"] == [f"image {i}" for i in numbers]
        assert Flat.pack(batch).unpack().targets["text"] == batch.targets["text"]
    assert {(line["key"], line["reason"]) for line in skipped} == {
        ("s09", "it has no .txt"),
        ("s10", "it has no label"),
        ("s11", "its .txt is not UTF-8 text"),
    }
    mixed = take(path, 1, mix=MixConfig(mixup=1.0), **fields)[0]
    labels = mixed.targets["label"]
    assert isinstance(labels, Mixed)
    assert labels.own is mixed.labels
    for row, other, weight, target in zip(*labels, mixed_labels(labels, 4), strict=True):
        torch.testing.assert_close(target, weight * row + (1 - weight) * other)


def test_a_loss_of_several_labels_is_that_of_each_class(tmp_path):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for targets in (torch.tensor([[0, 1, 1, 0]] * 6, dtype=torch.uint8), torch.rand(6, 4)):
        expected = F.binary_cross_entropy(logits.sigmoid(), targets.float(), reduction="none").sum(1)
        torch.testing.assert_close(classification_loss(logits, targets, "sigmoid"), expected)
    one_hot = F.one_hot(torch.arange(4), 4)
    torch.testing.assert_close(
        classification_loss(logits[:4], one_hot, "sigmoid"),
        classification_loss(logits[:4], torch.arange(4), "sigmoid"),
    )


def test_configurations_that_make_no_sense_are_refused():
    several = DataConfig(multi_label=True, label_field="npy")
    with pytest.raises(ValueError, match=r"train\.loss=sigmoid"):
        Classification(Config(data=several))
    Classification(Config(data=several, train=TrainConfig(loss="sigmoid")))


def test_checking_knows_all_kinds(tmp_path):
    documents = (DOCUMENT, b"[1, 2]", b"{", b'{"label": -1}')
    samples = [*({"json": document} for document in documents), {"cls": b"1"}]
    path = write(tmp_path / "a.tar", samples)
    problems = check_shards(str(path), labels=ClassTarget("json:label")).problems
    assert {kind: len(lines) for kind, lines in problems.items()} == {"bad labels": 2, "no label": 2}
    problems = check_shards(str(path), labels=ClassTarget("json:meta.classes", True)).problems
    assert {kind: len(lines) for kind, lines in problems.items()} == {"bad labels": 1, "no label": 3}
    good = write(tmp_path / "b.tar", samples[:1])
    assert dispatch(["shards", "check", str(good), "--label-field", "json:meta.none", "--multi-label"]) == 0


def test_evaluation_and_runs_read_the_field(tmp_path, run_flags, capsys):
    samples = [{"json": json.dumps({"y": i % 4, "all": [i % 4, 5]}).encode()} for i in range(12)]
    path = write(tmp_path / "a.tar", samples)
    images = EvalSet(str(path), {"label": ClassTarget("json:y", classes=10)})
    found = []
    for piece in images.pieces([Setting(4, 16)], 64, [range(12)]):
        assert piece.batch.labels is not None
        found += piece.batch.labels.tolist()
    assert sorted(found) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    shared = {"data__shards": path, "data__workers": 0, "train__steps": 2, "train__checkpoint_every": 1}
    one = run_flags(tmp_path / "one", **shared, data__label_field="json:y", data__val_shards=path)
    assert dispatch(["train", *one, "--eval.resolutions", "16", "--eval.patch-sizes", "4"]) == 0
    evaluation = [str(tmp_path / "one"), "--shards", str(path), "--resolutions", "16", "--patch-sizes", "4"]
    evaluation += ["--device", "cpu", "--workers", "0", "--no-cost"]
    assert dispatch(["eval", *evaluation, "--label-field", "json:y"]) == 0
    several = run_flags(
        tmp_path / "all", **shared, data__label_field="json:all", data__val_shards=path, train__loss="sigmoid"
    )
    budget = ["--eval.resolutions", "16", "--eval.patch-sizes", "4", "--eval.no-cost"]
    assert dispatch(["train", *several, *budget, "--data.multi-label", "--data.mix.mixup", "1"]) == 0
    row = read_results_file(tmp_path / "all/eval/results.json").rows[0]
    assert 0 < row["average_precision"] <= 1
    assert row["accuracy"] is None
    assert all(line["loss"] > 0 for line in read_json_lines(tmp_path / "all/metrics.jsonl"))
    capsys.readouterr()
