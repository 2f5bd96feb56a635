"""Scenes show what their captions say, and training shows no held-out pair."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from packvit.cli import dispatch
from packvit.data import CaptionTarget, Shard, expand_shards, write_scenes
from packvit.data.make.scenes import COLOURS, SIDES, SIZES

CAPTION = re.compile(r"a (\w+) (\w+) (\d) at the (\w+)")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, 300, seed=1)
    return out


def read(folder):
    """(scene's words, label, picture) of each sample."""
    found = []
    for path in expand_shards(str(folder)):
        shard = Shard.open(path)
        for member in range(len(shard)):
            first, second = CaptionTarget().read(shard, member)
            match = CAPTION.fullmatch(first)
            assert match
            assert set(match.groups()) <= set(re.findall(r"\w+", second))
            with Image.open(io.BytesIO(shard.image(member))) as image:
                found.append((match.groups(), shard.label(member), np.asarray(image).astype(int)))
    return found


def test_splits_differ_in_pairs_and_validation_in_captions(scenes):
    train, val, held_out = (
        {words for words, _, _ in read(scenes / name)} for name in ("train", "val", "held_out")
    )
    assert len(val) == 256
    assert len(held_out) == 64
    pairs = [{words[1:3] for words in split} for split in (train | val, held_out)]
    assert not pairs[0] & pairs[1]
    assert len(pairs[1]) == 8
    for place, names in ((0, SIZES), (1, COLOURS), (2, "0123456789"), (3, SIDES)):
        assert {words[place] for words in train} == set(names)
    assert max(map(len, ({pair[0] for pair in pairs[1]}, {pair[1] for pair in pairs[1]}))) == 8


def test_pictures_show_their_captions(scenes):
    for (size, colour, digit, side), label, picture in read(scenes / "val"):
        assert label == int(digit)
        height, width, _ = picture.shape
        apart = np.abs(picture - np.median(picture, (0, 1))).sum(2)
        ink = apart > apart.max() / 2
        rows, cols = np.nonzero(ink)
        tall = (rows.max() - rows.min() + 1) / min(height, width)
        assert tall < 0.4 if size == "small" else tall > 0.4
        y, x = rows.mean() / height - 0.5, cols.mean() / width - 0.5
        toward = {"left": -x, "right": x, "top": -y, "bottom": y}
        assert max(toward, key=toward.__getitem__) == side
        strongest = picture[apart >= np.quantile(apart[ink], 0.8)].mean(0)
        distance = {name: np.abs(strongest - np.array(pen)).sum() for name, pen in COLOURS.items()}
        assert min(distance, key=distance.__getitem__) == colour


def test_the_command_writes_them(tmp_path, capsys):
    assert dispatch(["shards", "demo", str(tmp_path), "--kind", "scenes", "--train-images", "5"]) == 0
    assert "5 scenes with captions" in capsys.readouterr().out
    assert len(read(tmp_path / "train")) == 5


def test_the_same_seed_gives_the_same_bytes(scenes, tmp_path):
    write_scenes(tmp_path, 300, seed=1)
    for path in expand_shards(str(tmp_path / "train")):
        assert (tmp_path / path).read_bytes() == (scenes / "train" / path.rpartition("/")[2]).read_bytes()
    with pytest.raises(ValueError, match="already holds shards"):
        write_scenes(tmp_path, 300)
    with pytest.raises(ValueError, match="train_images=0"):
        write_scenes(tmp_path / "none", 0)
