"""Images for evaluation: each once, whole, decoded once for all ways to show it, whoever reads it."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from packvit.common.engine.local import LocalEngine
from packvit.data import ClassTarget, EvalSet, Piece, Shard, write_shards
from packvit.data.make.write import Sample
from packvit.data.samples.cut import cut_image
from packvit.data.samples.decode import show
from packvit.data.streams import eval_set
from packvit.data.streams.headers import Scanned, Scanner
from packvit.evaluate import Setting
from packvit.packing import PackedBatch, decode_upright

SETTINGS = [Setting(4, 24), Setting(8, 40), Setting(6, tokens=20), Setting(8, 32, protocol="crop:0.75")]
TARGETS = {"label": ClassTarget(classes=10)}
TOKENS = 128
BROKEN = {3, 17}


@pytest.fixture(scope="module")
def images(digits_set, tmp_path_factory) -> EvalSet:
    """30 images in three shards, two of which have a good header and no pixels."""
    shard = Shard.open(digits_set / "val/shard-000000.tar")
    samples = []
    for i in range(len(shard)):
        data = shard.image(i)
        data = data[: len(data) // 2] if i in BROKEN else data
        samples.append(Sample(shard.key(i), data, "png", shard.label(i)))
    out = tmp_path_factory.mktemp("set")
    write_shards(samples, out, 12)
    found = EvalSet(str(out), TARGETS)
    assert len(found.headers) == 30
    return found


def read(images: EvalSet, chunks: list[range], workers: int = 0) -> dict[tuple[int, int], list[Piece]]:
    """Pieces by chunk and way; the batches are those of the CPU."""
    found: dict[tuple[int, int], list[Piece]] = {}
    for piece in images.pieces(SETTINGS, TOKENS, chunks, workers):
        found.setdefault((piece.chunk, piece.way), []).append(piece)
    return found


def alone(images: EvalSet, place: int, setting: Setting) -> PackedBatch:
    """The slow twin: one image, read and shown by itself."""
    header = images.headers[place]
    data = images.shards.open(header.reference.shard).image(header.reference.member)
    view = setting.view(header.native_size)
    pixels = show(Image.fromarray(decode_upright(data, header.native_size)), view, header.native_size)
    return PackedBatch.build([[cut_image(pixels, view, header.native_size, header.key)]], view.num_tokens)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_shown_once_and_whole_in_every_way(images, workers):
    chunks = [range(20, 30), range(11), range(11, 20)]
    found = read(images, chunks, workers)
    for (chunk, way), pieces in found.items():
        places = torch.cat([piece.places for piece in pieces]).tolist()
        good = [place for place in chunks[chunk] if place not in BROKEN]
        assert places == good
        assert [key for piece in pieces for key in piece.batch.keys] == [images.headers[i].key for i in good]
        for piece in pieces:
            batch = piece.batch
            assert batch.num_slots == batch.stats().tokens <= TOKENS
            assert torch.equal(batch.image_lengths(), batch.grids.prod(1).long())
            lengths = batch.cu_seqlens.diff().tolist()
            patches = batch.patches[(SETTINGS[way].patch_size,) * 2].split(lengths)
            for place, own, grid in zip(piece.places.tolist(), patches, batch.grids, strict=True):
                expected = alone(images, place, SETTINGS[way])
                assert torch.equal(grid, expected.grids[0])
                assert torch.equal(own, *expected.patches.values())
    assert len(found) == len(chunks) * len(SETTINGS)


def test_what_cannot_be_decoded_is_named_with_the_last_piece_of_its_chunk(images):
    for (chunk, way), pieces in read(images, [range(10), range(17, 18), range(20, 30)]).items():
        lasts = [piece.last for piece in pieces]
        assert lasts == [False] * (len(pieces) - 1) + [way == len(SETTINGS) - 1]
        names = [line["key"] for piece in pieces for line in piece.skipped]
        broken = {0: [images.headers[3].key], 1: [images.headers[17].key], 2: []}[chunk]
        assert names == (broken if lasts[-1] else [])
    # A chunk without any image that can be used ends all the same.
    [*_, last] = images.pieces(SETTINGS, TOKENS, [range(17, 18)])
    assert last.last
    assert last.batch.num_images == 0


def test_an_image_is_decoded_once_for_all_ways(images, monkeypatch):
    decoded: Counter = Counter()
    real = eval_set.decode_upright

    def counting(data: bytes, native_size: tuple[int, int]) -> np.ndarray:
        decoded[data] += 1
        return real(data, native_size)

    monkeypatch.setattr(eval_set, "decode_upright", counting)
    read(images, [range(15), range(15, 30)])
    assert len(decoded) == 30
    assert set(decoded.values()) == {1}


@dataclass(frozen=True)
class Half:
    """Keeps the left half of an image, and refuses one of them."""

    refused: str

    def __call__(self, pixels: np.ndarray, key: str) -> np.ndarray:
        if key == self.refused:
            raise ValueError("it is refused")
        return pixels[:, : pixels.shape[1] // 2]


def test_views_are_those_of_altered_images(images):
    plain = EvalSet(images.shards.paths, TARGETS)
    assert plain.fingerprint() == images.fingerprint()
    altered = EvalSet(images.shards.paths, TARGETS, alter=Half(images.headers[0].key))
    assert altered.fingerprint() != images.fingerprint()
    height, width = images.headers[1].native_size
    [piece] = altered.pieces([Setting(1, tokens=height * (width // 2))], 1, [range(2)])
    assert [line["reason"] for line in piece.skipped] == ["it is refused"]
    assert piece.batch.native_sizes.tolist() == [[height, width // 2]]
    assert piece.batch.grids.tolist() == [[height, width // 2]]


def test_sets_made_of_another_leave_it_as_it_is(images):
    half = Half(images.headers[0].key)
    before = images.fingerprint()
    altered = EvalSet(images.shards.paths, TARGETS, alter=half)
    assert images.altered(half).fingerprint() == altered.fingerprint()
    fewer = images.without({0: "it is left out", 29: "so is it"})
    assert fewer.headers == images.headers[1:-1]
    keys = [images.headers[place].key for place in (0, 29)]
    assert [(line["key"], line["reason"]) for line in fewer.skipped[-2:]] == [
        (keys[0], "it is left out"),
        (keys[1], "so is it"),
    ]
    assert [Path(line["shard"]).name for line in fewer.skipped[-2:]] == [
        "shard-000000.tar",
        "shard-000002.tar",
    ]
    assert images.fingerprint() == before
    assert images.skipped == []


def test_labels_of_other_classes_are_told_from_broken_samples(images):
    few = EvalSet(images.shards.paths, {"label": ClassTarget(classes=4)})
    assert few.unknown_labels
    assert few.unknown_labels == few.skipped
    assert all("is not in 0..3" in line["reason"] for line in few.unknown_labels)
    assert len(few.headers) + len(few.skipped) == 30
    assert images.unknown_labels == []


def test_an_engine_reads_the_same_headers(images, tmp_path):
    for path in images.shards.paths:
        shutil.copy(path, tmp_path)
    (tmp_path / "a-torn.tar").write_bytes(b"no tar")
    targets = {"label": ClassTarget(classes=4)}
    alone, by_engine = (EvalSet(str(tmp_path), targets, engine=engine) for engine in (None, LocalEngine()))
    assert len(alone.unknown_labels) > 0
    assert alone.skipped[0]["shard"].endswith("a-torn.tar")
    for name in ("headers", "skipped", "unknown_labels"):
        assert getattr(alone, name) == getattr(by_engine, name)


def test_a_machine_without_a_shard_is_not_taken_for_a_bad_shard(images, monkeypatch):
    missing = Scanned(skipped=[{"shard": "", "key": None, "reason": "no such file"}], lost_on="node-7")
    scan = Scanner.scan
    monkeypatch.setattr(Scanner, "scan", lambda own, number: missing if number == 1 else scan(own, number))
    with pytest.raises(ValueError, match=r"node-7: .*-000001.tar: no such file: all machines must share"):
        EvalSet(images.shards.paths, TARGETS, engine=LocalEngine())
