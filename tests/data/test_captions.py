"""Captions: what samples hold, what an epoch draws, and what is refused."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from packvit.data import (
    BadSample,
    CaptionTarget,
    DataConfig,
    DataPlan,
    Shard,
    ShardSet,
    TrainLoader,
    read_captions,
)
from packvit.packing import PackingConfig, ResolutionConfig, ViewsConfig

# Each sample's fields beside its picture.
SAMPLES = {
    "one": {"txt": b" a cat \n"},
    "three": {"txt": b"a dog\n\na hound\r\nan animal"},
    "unicode": {"txt": "ein Kätzchen".encode()},
    "list": {"json": json.dumps({"info": {"captions": ["red", " blue", ""]}}).encode()},
    "single": {"json": json.dumps({"info": {"captions": "green"}}).encode()},
}
BAD = {
    "none": ({}, "it has no .txt"),
    "empty": ({"txt": b" \n \t"}, "it has no caption in txt"),
    "latin": ({"txt": "Kätzchen".encode("latin-1")}, "its .txt is not UTF-8 text"),
}
BAD_JSON = {
    "absent": ({"json": b"{}"}, "it has no caption in json:info.captions"),
    "number": ({"json": b'{"info": {"captions": 3}}'}, "neither a text nor a list of texts"),
    "mixed": ({"json": b'{"info": {"captions": ["a", 3]}}'}, "neither a text nor a list of texts"),
    "broken": ({"json": b"{"}, "its .json is not a JSON document"),
}


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture, "PNG")
    with tarfile.open(path, "w") as tar:
        for key, fields in samples.items():
            for name, content in {"png": picture.getvalue(), **fields}.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Shard:
    bad = {key: fields for cases in (BAD, BAD_JSON) for key, (fields, _) in cases.items()}
    return Shard.open(write_tar(tmp_path_factory.mktemp("captions") / "a.tar", SAMPLES | bad))


def member(shard: Shard, key: str) -> int:
    return next(number for number in range(len(shard)) if shard.key(number) == key)


def test_lines_of_text_and_places_in_json_are_captions(shard):
    text, document = CaptionTarget(), CaptionTarget("json:info.captions")
    assert text.read(shard, member(shard, "one")) == ["a cat"]
    assert text.read(shard, member(shard, "three")) == ["a dog", "a hound", "an animal"]
    assert text.read(shard, member(shard, "unicode")) == ["ein Kätzchen"]
    assert document.read(shard, member(shard, "list")) == ["red", "blue"]
    assert document.read(shard, member(shard, "single")) == ["green"]


@pytest.mark.parametrize(("field", "cases"), [("txt", BAD), ("json:info.captions", BAD_JSON)])
def test_samples_without_captions_are_bad(shard, field, cases):
    for key, (_, reason) in cases.items():
        with pytest.raises(BadSample, match=reason):
            CaptionTarget(field).read(shard, member(shard, key))


def test_a_field_that_no_sample_can_have_is_refused():
    for field in ("TXT", "", "json:", "a:b"):
        with pytest.raises(ValueError, match="lower case"):
            CaptionTarget(field)


def test_the_first_captions_are_read_past_bad_samples(shard):
    shards = ShardSet.find(shard.path)
    everything = ["a cat", "a dog", "a hound", "an animal", "ein Kätzchen"]
    assert read_captions(shards, CaptionTarget(), 100) == everything
    assert read_captions(shards, CaptionTarget(), 3) == everything[:3]


def refuse_hounds(text: str) -> str:
    if text == "a hound":
        raise ValueError("hounds are refused")
    return text


def test_each_epoch_draws_one_and_a_resumed_run_the_same(tmp_path):
    """What the encoder refuses is a bad sample, and named."""
    names = [f"s{number}" for number in range(8)]
    path = write_tar(tmp_path / "a.tar", dict.fromkeys(names, SAMPLES["three"]))

    def make(encode: Callable[[str], Any] = str, **changes) -> TrainLoader:
        views = ViewsConfig(patch_sizes=(8,), resolution=ResolutionConfig(low=8, high=8))
        data = DataConfig(shards=(str(path),), workers=0, streams=1, **changes)
        packing = PackingConfig(seq_len=8, sequences=1, lookahead=4)
        return TrainLoader(DataPlan(data, views, packing, 3, {"caption": CaptionTarget("txt", encode)}))

    loader = make()
    batches = iter(loader)
    drawn = [next(batches) for _ in range(20)]
    found = [list(zip(b.batch.keys, b.batch.targets["caption"], strict=True)) for b in drawn]
    counts = Counter(text for pairs in found for _, text in pairs)
    assert set(counts) == {"a dog", "a hound", "an animal"}
    assert min(counts.values()) > 20
    per_key = {name: {text for pairs in found for key, text in pairs if key == name} for name in names}
    assert all(len(texts) == 3 for texts in per_key.values())

    again = make()
    again.load_state_dict({**loader.state_dict(), "streams": {"0": drawn[9].state}, "start": 10})
    later = [b.batch for b, _ in zip(iter(again), range(10), strict=False)]
    assert [list(zip(b.keys, b.targets["caption"], strict=True)) for b in later] == found[10:]

    batches = iter(make(refuse_hounds, max_bad_fraction=1.0))
    drawn = [next(batches) for _ in range(20)]
    assert not any("a hound" in b.batch.targets["caption"] for b in drawn)
    skipped = [line for b in drawn for line in b.skipped]
    assert skipped
    assert {line["reason"] for line in skipped} == {"hounds are refused"}
