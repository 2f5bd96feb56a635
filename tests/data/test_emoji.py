"""Emoji from packages on disk: three designers to train on, the fourth held out; nothing is fetched."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packvit.cli import dispatch
from packvit.data import CaptionTarget, Shard, expand_shards
from packvit.data.make.emoji import DESIGNERS, fetch_packages, package_name

CONCEPTS = [("DOG FACE", "1F436", ["dog"]), ("Egypt Flag", "1F1EA-1F1EC", ["flag-eg", "egypt_flag"])]


@pytest.fixture
def packages(tmp_path) -> Path:
    """Each designer has a colour; the third concept lacks a drawing."""
    concepts = [
        {
            "name": name,
            "unified": code,
            "image": f"{code.lower()}.png",
            "short_names": short,
            "short_name": short[0],
        }
        for name, code, short in [*CONCEPTS, ("LOGO", "F8FF", ["logo"])]
    ]
    for concept in concepts:
        concept |= {f"has_img_{d}": concept["name"] != "LOGO" or d == "apple" for d in DESIGNERS}
    for number, designer in enumerate(DESIGNERS):
        folder = tmp_path / "node_modules" / package_name(designer)
        (folder / f"img/{designer}/64").mkdir(parents=True)
        (folder / "emoji.json").write_text(json.dumps(concepts))
        for concept in concepts:
            pixels = np.zeros((64, 64, 4), np.uint8)
            pixels[16:48, 16:48] = (50 * number, 0, 100, 255)
            Image.fromarray(pixels).save(folder / f"img/{designer}/64/{concept['image']}")
    return tmp_path / "node_modules"


def test_three_designers_are_for_training_and_the_fourth_is_held_out(packages, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["shards", "demo", str(out), "--kind", "emoji", "--packages", str(packages)]
    assert dispatch(arguments) == 0
    assert "2 concepts" in capsys.readouterr().out
    found = {}
    for split in ("train", "val"):
        shard = Shard.open(expand_shards(str(out / split))[0])
        for member in range(len(shard)):
            with Image.open(io.BytesIO(shard.image(member))) as image:
                pixels = np.asarray(image)
            found[split, shard.key(member)] = (CaptionTarget().read(shard, member), pixels)
    codes = [code.lower() for _, code, _ in CONCEPTS]
    expected = {("val" if d == "apple" else "train", f"{d}-{code}") for d in DESIGNERS for code in codes}
    assert found.keys() == expected
    for (_, key), (captions, pixels) in found.items():
        designer, _, code = key.partition("-")
        assert captions == (["dog face", "dog"] if code == codes[0] else ["egypt flag", "flag eg"])
        assert pixels.shape == (64, 64, 3)
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[32, 32].tolist() == [50 * DESIGNERS.index(designer), 0, 100]
    assert dispatch(arguments) == 2
    assert "already holds shards" in capsys.readouterr().err


def test_what_is_wrong_with_packages_is_one_sentence(packages, tmp_path, capsys, monkeypatch):
    def run(folder: Path, name: str) -> str:
        out = str(tmp_path / name)
        assert dispatch(["shards", "demo", out, "--kind", "emoji", "--packages", str(folder)]) == 2
        return capsys.readouterr().err

    assert "emoji.json cannot be read" in run(tmp_path / "nowhere", "a")
    (packages / "emoji-datasource-apple/img/apple/64/1f436.png").write_text("nothing")
    assert "1f436.png is not a readable picture" in run(packages, "b")
    (packages / "emoji-datasource-google/emoji.json").write_text("[1]")
    assert "emoji.json is not a list of emoji" in run(packages, "c")
    assert fetch_packages(packages.parent) == packages  # they are there: nothing is fetched
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="install npm, or name a folder"):
        fetch_packages(tmp_path / "cache")
