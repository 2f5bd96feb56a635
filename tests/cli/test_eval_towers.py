"""`packvit eval` of two towers: classes by their names, retrieval by captions, both at once, and plans."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from packvit.cli import dispatch
from packvit.data import Shard, expand_shards, pack_images
from packvit.data.samples.captions import CaptionTarget
from packvit.data.samples.decode import read_native_size
from packvit.models import (
    PackedText,
    PackedViT,
    TextConfig,
    TextEncoder,
    TwoTowers,
    TwoTowersConfig,
    ViTConfig,
    hash_model,
    load_two_towers,
    save_model,
    save_two_towers,
    train_tokenizer,
)
from packvit.packing import decode_upright

QUICK = ["--device", "cpu", "--workers", "0", "--no-cost"]
SIZES = ["--resolutions", "16", "32", "--patch-sizes", "8"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def tokenizer(scenes_set):
    shard = Shard.open(scenes_set / "train/shard-000000.tar")
    texts = [text for i in range(len(shard)) for text in CaptionTarget().read(shard, i)]
    return train_tokenizer(texts, 60)


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    """Towers whose embeddings spread, with a bias."""
    torch.manual_seed(0)
    image = ViTConfig(width=32, depth=1, heads=2, num_classes=16)
    text = TextConfig(width=32, depth=1, heads=2, vocab_size=60, max_tokens=24, embed_dim=16)
    towers = TwoTowers(TwoTowersConfig(image=image, text=text, temperature=8.0, bias=-2.0))
    folder = save_two_towers(towers, tmp_path_factory.mktemp("towers") / "model")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """Flags that ask for everything."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "names.txt").write_text("\n".join(DIGITS))
    (folder / "templates.txt").write_text("{}\na big {} at the left\n")
    names, templates = str(folder / "names.txt"), str(folder / "templates.txt")
    return ["--class-names", names, "--templates", templates, "--captions", "txt"]


def command(model: Path, scenes_set: Path, out: Path, *more: str) -> list[str]:
    return [
        "eval",
        str(model),
        "--shards",
        str(scenes_set / "held_out"),
        *SIZES,
        *QUICK,
        "--out",
        str(out),
        *more,
    ]


@pytest.fixture(scope="module")
def both(model, scenes_set, words, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("both")
    kept = ["--save-predictions", "--features"]
    # A set with labels of its own has no captions to retrieve.
    kept += ["--sets", f"own={scenes_set / 'val'}", "--label-map", f"own={out / 'map.json'}"]
    (out / "map.json").write_text(json.dumps([[0, 1], 2, 3, 4, 5, 6, 7, 8, 9, []]))
    assert dispatch(command(model, scenes_set, out, *words, *kept)) == 0
    return out


def rows(out: Path) -> dict[tuple[str, str], dict]:
    found = json.loads((out / "results.json").read_text())["rows"]
    return {(row["set"], row["setting"]): row for row in found}


def read_alone(towers: TwoTowers, encode: TextEncoder, folder: Path, resolution: int) -> list[torch.Tensor]:
    """Embeddings of each image and each caption by itself, captions' owners, labels."""
    shards = [Shard.open(path) for path in expand_shards(str(folder))]
    images, texts, owner, labels = [], [], [], []
    for shard, i in ((each, i) for each in shards for i in range(len(each))):
        pixels = decode_upright(shard.image(i), read_native_size(shard, i))
        images.append(towers.embed_images(pack_images([pixels], 8, resolution)))
        captions = CaptionTarget().read(shard, i)
        owner += [len(labels)] * len(captions)
        texts += [towers.embed_texts(PackedText.build([encode(text).ids])) for text in captions]
        labels.append(shard.label(i))
    return [torch.cat(images), torch.cat(texts), torch.tensor(owner), torch.tensor(labels)]


def test_both_measures_are_their_formulas_over_what_each_tower_says_alone(both, model, tokenizer, scenes_set):
    towers = load_two_towers(model)
    encode = TextEncoder(tokenizer, towers.config.text)
    with torch.inference_mode():
        images, texts, owner, labels = read_alone(towers, encode, scenes_set / "held_out", 32)
        prompts = [[f"{name}", f"a big {name} at the left"] for name in DIGITS]
        classes = [
            torch.cat([towers.embed_texts(PackedText.build([encode(p).ids])) for p in own]).mean(0)
            for own in prompts
        ]
        logits = 8 * images @ torch.nn.functional.normalize(torch.stack(classes), dim=1).T - 2
    with np.load(both / "predictions.npz") as file:
        found = dict(file)
    assert found["labels"].tolist() == labels.tolist()
    np.testing.assert_allclose(found["logits/r32-p8"], logits, atol=1e-4)
    np.testing.assert_allclose(found["embedding/r32-p8"], images, atol=1e-5)
    row = rows(both)["main", "r32-p8"]
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=0.02)
    sigmoids = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.nn.functional.one_hot(labels, 10).float(), reduction="none"
    )
    assert row["nll"] == pytest.approx(sigmoids.sum(1).mean().item(), rel=1e-3)
    scores = images @ texts.T
    order = scores.argsort(dim=1, descending=True, stable=True)
    own = owner[order] == torch.arange(len(images))[:, None]
    ranks = own.int().argmax(1)
    assert (found["image_to_text_rank/r32-p8"] == ranks.numpy()).mean() > 0.95
    assert (found["retrieved/r32-p8"] == order[:, 0].numpy()).mean() > 0.95
    assert found["caption_image"].tolist() == owner.tolist()
    assert len(found["captions"]) == len(texts)
    for depth in (1, 5, 10):
        assert row[f"image_to_text_r{depth}"] == pytest.approx(
            (ranks < depth).float().mean().item(), abs=0.02
        )
        best = scores.argsort(dim=0, descending=True, stable=True)[:depth]
        hits = (best == owner).any(0).float().mean().item()
        assert row[f"text_to_image_r{depth}"] == pytest.approx(hits, abs=0.02)
    assert row["texts"] == len(texts)
    assert ranks.float().std() > 5


def test_a_set_with_a_label_map_has_no_retrieval(both):
    row = rows(both)["own", "r32-p8"]
    assert row["images"] < 256  # nothing means the label 9
    assert len(row["class_accuracy"]) == 10
    assert "image_to_text_r1" not in row


def test_results_say_what_was_asked(both, model):
    found = json.loads((both / "results.json").read_text())
    entry = found["model"]
    assert entry["hash"] == hash_model(load_two_towers(model).image)
    assert entry["num_classes"] == 10
    assert found["classes"] == DIGITS
    assert entry["loss"] == "sigmoid"
    assert entry["templates"] == ["{}", "a big {} at the left"]
    assert entry["captions"] == "txt"
    page = (both / "report.html").read_text()
    assert "Accuracy over compute" in page
    assert "2 templates" in page
    assert "The worst images" in page
    assert "Captions that were missed" in page


def test_captions_alone_are_the_default_and_serve_other_sets_tokens_and_plans(
    model, scenes_set, tmp_path, capsys
):
    more = ["--tokens", "9", "--sets", f"train={scenes_set / 'train'}"]
    assert dispatch(command(model, scenes_set, tmp_path, *more)) == 0
    shown = capsys.readouterr().out
    assert "The grid favours t9-p8" in shown
    assert "Recall@1, image to text by setting" in shown
    found = rows(tmp_path)
    assert {name for name, _ in found} == {"main", "train"}
    assert found["train", "r16-p8"]["texts"] == 120
    assert all("accuracy" not in row for row in found.values())
    assert found["main", "r32-p8"]["image_to_text_r1_low"] <= found["main", "r32-p8"]["image_to_text_r1"]
    assert (tmp_path / "image_to_text_r1.png").exists()
    page = (tmp_path / "report.html").read_text()
    assert "Recall@1, image to text over compute" in page
    assert "ccuracy" not in page.split("<body")[1]
    assert dispatch(["plan", str(tmp_path), "--max-tokens", "5"]) == 0
    shown = capsys.readouterr().out
    assert "Best setting: r16-p8, recall@1, image to text" in shown
    assert "There is no cascade" in shown
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["measure"] == "image_to_text_r1"
    assert plan["measured"]["accuracy"] == found["main", "r16-p8"]["image_to_text_r1"]


def test_classes_are_the_default_where_shards_name_them(model, digits_set, scenes_set, tmp_path):
    arguments = command(model, scenes_set, tmp_path, "--sets", f"scenes={scenes_set / 'held_out'}")
    arguments[arguments.index("--shards") + 1] = str(digits_set / "val")
    assert dispatch(arguments) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["classes"] == [str(i) for i in range(10)]
    assert {row["set"] for row in found["rows"]} == {"main", "scenes"}
    assert all(row["accuracy"] is not None and "image_to_text_r1" not in row for row in found["rows"])


def test_corrupted_images_are_retrieved_too(model, scenes_set, tmp_path, capsys):
    assert dispatch(command(model, scenes_set, tmp_path, "--corruptions", "contrast:5")) == 0
    assert "Recall@1, image to text under corruption" in " ".join(capsys.readouterr().out.split())
    found = rows(tmp_path)
    summary = json.loads((tmp_path / "results.json").read_text())["corruptions"][0]
    assert summary["corrupted"] == found["contrast-5", summary["setting"]]["image_to_text_r1"]
    page = (tmp_path / "report.html").read_text()
    assert page.count('id="corruptions"') == 1
    assert 'id="sets"' not in page  # a corrupted set is no other set
    for part in ("Recall@1, image to text by strength of corruption", "contrast 5: ", "lost"):
        assert part in page
    assert dispatch(["plan", str(tmp_path)]) == 0
    assert "Under corruption, the mean of 1 kinds" in capsys.readouterr().out


def test_a_page_of_damaged_predictions_is_refused(both, tmp_path, capsys):
    shutil.copytree(both, tmp_path / "eval")
    path = tmp_path / "eval/predictions.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for name in ("retrieved/r16-p8", "retrieved/r32-p8"):
        arrays[name] = arrays[name] + len(arrays["captions"])
    np.savez(path, **arrays)
    error = fails(capsys, ["report", str(tmp_path / "eval")])
    assert f"has numbers that are not below {len(arrays['captions'])}" in error


def fails(capsys, arguments: list[str]) -> str:
    assert dispatch(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_what_cannot_be_measured_is_refused(model, scenes_set, digits_set, words, tmp_path, capsys):
    ask = [*command(model, scenes_set, tmp_path / "out")]
    single = save_model(PackedViT(ViTConfig(width=32, depth=1, heads=2, num_classes=10)), tmp_path / "single")
    one = [*ask[:1], str(single), *ask[2:]]
    for flags in (["--captions", "txt"], words[:2], words[2:4]):
        field = flags[0][2:].replace("-", "_")
        assert f"{field} is for models with a text tower, and {single}" in fails(capsys, [*one, *flags])
    assert "evaluate them one at a time" in fails(capsys, [*ask[:2], str(single), *ask[2:]])
    bare = save_two_towers(load_two_towers(model), tmp_path / "bare")
    alone = [*ask[:1], str(bare), *ask[2:]]
    assert "tokenizer.json: name the text tower's with tokenizer" in fails(capsys, alone)
    assert "templates need names of classes" in fails(capsys, [*ask, *words[2:4]])
    assert "it has no .json" in fails(capsys, [*ask, "--captions", "json:text"])
    assert "multi_label is about classes" in fails(capsys, [*ask, "--multi-label"])
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    few = ["--class-names", str(tmp_path / "few.txt")]
    assert "few.txt has 2 classes, but" in fails(capsys, [*ask, *few])
    ask[ask.index("--shards") + 1] = str(digits_set / "val")
    assert "few.txt has 2 classes, but classes.json" in fails(capsys, [*ask, *few])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_ranks_give_the_same_as_one_process(model, scenes_set, words, both, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = [*words, "--save-predictions", "--features"]
    more += ["--sets", f"own={scenes_set / 'val'}", "--label-map", f"own={both / 'map.json'}"]
    result = subprocess.run(
        [*launcher, "-m", "packvit.cli", *command(model, scenes_set, tmp_path, *more)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("results.csv", "predictions.npz"):
        assert (tmp_path / name).read_bytes() == (both / name).read_bytes()
