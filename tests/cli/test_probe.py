"""`packvit probe` on predictions.npz as `packvit eval --features` writes it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from packvit.cli import dispatch
from packvit.data import pack_images
from packvit.evaluate.measures.features import read_features
from packvit.models import PackedViT, ViTConfig

CLASSES, WIDTH = 4, 16


def write_predictions(
    folder: Path, settings: dict[str, np.ndarray], labels: np.ndarray, model: str = "m"
) -> Path:
    """What an evaluation writes, as far as probes read it."""
    folder.mkdir(parents=True, exist_ok=True)
    features = {f"features/{name}": values.astype(np.float32) for name, values in settings.items()}
    keys = np.array([f"{i:06d}" for i in range(len(labels))])
    np.savez(
        folder / "predictions.npz", allow_pickle=False, keys=keys, labels=labels.astype(np.int64), **features
    )
    (folder / "results.json").write_text(json.dumps({"model": {"hash": model}, "rows": []}))
    return folder / "predictions.npz"


def planted(images: int, seed: int, flip: bool = False, noise: float = 0.1) -> np.ndarray:
    centres = np.random.default_rng(9).normal(size=(CLASSES, WIDTH)) * (-1 if flip else 1)
    return centres[np.arange(images) % CLASSES] + noise * np.random.default_rng(seed).normal(
        size=(images, WIDTH)
    )


@pytest.fixture
def sets(tmp_path) -> tuple[str, str]:
    """Two settings: good features, and the same with all signs changed."""
    found = []
    for seed, (name, images) in enumerate({"train": 40, "test": 24}.items()):
        settings = {"r32-p8": planted(images, seed), "r64-p8": planted(images, seed, flip=True)}
        labels = np.arange(images) % CLASSES
        labels[:CLASSES] = -1  # without a label an image has no part in this
        found.append(str(write_predictions(tmp_path / name, settings, labels)))
    return found[0], found[1]


def test_separable_features_are_classified_and_the_file_says_how(sets, tmp_path, capsys):
    out = tmp_path / "made/probe.json"
    assert dispatch(["probe", *sets, "--shots", "1", "5", "--knn", "3", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["images"] == {"train": 36, "test": 20}
    assert [(row["train_setting"], row["setting"]) for row in result["rows"]] == [
        ("r32-p8",) * 2,
        ("r64-p8",) * 2,
    ]
    for row in result["rows"]:
        assert row["fewshot"] == {n: {"accuracy": 1.0, "draws": [1.0] * 3} for n in ("1", "5")}
        assert row["knn"] == row["knn_majority"] == 1.0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("r32-p8", "5-shot", "100.0%", "knn_majority", "Wrote"))


def test_features_of_one_setting_query_those_of_another(sets, tmp_path):
    folders = [str(Path(path).parent) for path in sets]
    out = tmp_path / "probe.json"
    assert dispatch(["probe", *folders, "--shots", "5", "--knn", "3", "--across", "--out", str(out)]) == 0
    rows = {(row["train_setting"], row["setting"]): row for row in json.loads(out.read_text())["rows"]}
    assert len(rows) == 4
    for (source, target), row in rows.items():
        assert (row["knn"] == 1.0) == (source == target)
        assert (row["fewshot"]["5"]["accuracy"] == 1.0) == (source == target)


def test_either_method_may_be_left_out(sets, capsys):
    assert dispatch(["probe", *sets, "--shots", "2", "--knn", "0"]) == 0
    assert "knn" not in capsys.readouterr().out
    assert dispatch(["probe", *sets, "--shots", "--knn", "3"]) == 0
    assert "shot" not in capsys.readouterr().out


def test_what_cannot_be_probed_is_said_in_a_sentence(sets, tmp_path, capsys):
    train, test = sets
    labels = np.arange(8) % CLASSES
    good = {"r32-p8": planted(8, 0)}

    def made(name: str, settings: dict, labels: np.ndarray = labels, model: str = "m") -> str:
        return str(write_predictions(tmp_path / name, settings, labels, model))

    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "empty.npz", a=np.zeros(3))
    broken = planted(8, 0)
    broken[3, 2] = np.nan
    for arguments, what in (
        (
            [train, made("bare", {})],
            "bare/predictions.npz holds no features: run `packvit eval` with --features",
        ),
        ([train, str(tmp_path / "none.npz")], "none.npz is missing"),
        ([train, str(tmp_path / "text.npz")], "text.npz is damaged"),
        ([train, str(tmp_path / "empty.npz")], "empty.npz has no labels: it is not a predictions.npz"),
        ([train, made("nan", {"r32-p8": broken})], "features/r32-p8 is not a finite vector for each of 8"),
        ([train, made("short", {"r32-p8": planted(7, 0)})], "features/r32-p8 is not a finite vector"),
        (
            [train, made("nameless", good, np.full(8, -1))],
            "nameless/predictions.npz holds no image with a label",
        ),
        ([train, made("narrow", {"r32-p8": planted(8, 0)[:, :5]})], "width 16, .* of width 5"),
        ([train, made("mixed", {**good, "b": planted(8, 0)[:, :5]})], "features of several widths"),
        ([train, made("other", good, model="n")], "are of different models, by the results.json"),
        ([train, made("away", {"r48-p8": planted(8, 0)})], "no setting in common: add --across"),
        ([train, made("new", good, labels + 1)], "class 4 of the images to classify has none"),
        ([train, test], "class 0 has 9 images to learn from, too few for 10 shots"),
        ([train, test, "--shots", "1", "--knn", "37"], "37 neighbours cannot be found among 36 images"),
        ([train, test, "--shots", "0"], "--shots 0"),
        ([train, test, "--shots", "--knn", "0"], "leave nothing to do"),
        ([train, test, "--ridge", "0"], "--ridge 0 must be positive"),
        ([train, test, "--draws", "0"], "--draws 0"),
        ([train, test, "--knn", "-1"], "--knn -1"),
        ([train, test, "--out", str(tmp_path / "text.npz/probe.json")], "cannot be written to"),
        ([train, test, "--out", str(tmp_path)], "is a folder"),
        ([train, test, "--out", str(tmp_path / "predictions.npz")], "would replace a file of an evaluation"),
    ):
        assert dispatch(["probe", *arguments]) == 2, what
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(what, error), (what, error)


def test_an_image_is_its_own_nearest_neighbour_however_it_is_packed(tmp_path):
    torch.manual_seed(0)
    model = PackedViT(ViTConfig(width=64, depth=1, heads=2, num_classes=10)).eval()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (24 + 8 * (i % 3), 32, 3), dtype=np.uint8) for i in range(12)]
    packed, alone = {}, {}
    with torch.inference_mode():
        for p in (4, 8):
            packed[f"r32-p{p}"] = model.features(pack_images(pictures, p)).numpy()
            each = [model.features(pack_images([picture], p)) for picture in pictures]
            alone[f"r32-p{p}"] = torch.cat(each).numpy()
    labels = np.arange(12)
    paths = [str(write_predictions(tmp_path / n, s, labels)) for n, s in (("a", packed), ("b", alone))]
    assert read_features(paths[0]).width == 64
    out = tmp_path / "probe.json"
    assert dispatch(["probe", *paths, "--shots", "1", "--knn", "1", "--across", "--out", str(out)]) == 0
    for row in json.loads(out.read_text())["rows"]:
        assert (row["knn"] == 1.0) == (row["train_setting"] == row["setting"])
