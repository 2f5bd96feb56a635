"""A pass gives what a model says of each image alone, whoever reads which chunk and however often it is
killed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from packvit.common.display import Display
from packvit.common.engine.local import LocalEngine
from packvit.common.ranks import ALONE
from packvit.data import ClassTarget, EvalSet, Piece, pack_images
from packvit.evaluate import Accuracy, Evaluation, Setting, Subject, cut_chunks
from packvit.evaluate.sweep.grid import summarise
from packvit.evaluate.sweep.store import ChunkStore
from packvit.models import Outputs, PackedViT, ViTConfig, hash_model
from packvit.packing import PackedBatch, PackingConfig, decode_upright

SETTINGS = [Setting(8, 24), Setting(8, 40), Setting(5, 30), Setting(16, 16)]
PACKING = PackingConfig(seq_len=64, sequences=2)


@pytest.fixture(scope="session")
def images(digits_set) -> EvalSet:
    """120 images in four chunks."""
    return EvalSet(str(digits_set / "train"), {"label": ClassTarget(classes=10)})


@pytest.fixture(scope="session")
def subject() -> Subject:
    torch.manual_seed(0)
    model = PackedViT(ViTConfig(width=32, depth=2, heads=2, num_classes=10, registers=1)).eval()
    assert model.head is not None
    torch.nn.init.normal_(model.head.weight)
    return Subject("model", "model", model, hash_model(model), [Accuracy(features=True)])


def make(out: Path, workers: int = 0) -> Evaluation:
    return Evaluation(out, PACKING, ALONE, workers, "fp32", Display(quiet=True))


def columns(store: ChunkStore) -> dict[str, dict[str, Tensor]]:
    return {setting.name: store.gather(setting.name) for setting in SETTINGS}


@pytest.fixture(scope="session")
def undisturbed(images, subject, tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    store = make(tmp_path_factory.mktemp("whole")).collect(subject, images, SETTINGS)
    assert len(store.done()) == 4
    return columns(store)


def assert_same(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    """To the bit."""
    assert found.keys() == expected.keys()
    for setting, own in expected.items():
        assert found[setting].keys() == own.keys()
        for name, tensor in own.items():
            assert torch.equal(found[setting][name], tensor), (setting, name)


def test_every_answer_is_that_to_the_image_alone(images, subject, undisturbed):
    for setting in SETTINGS:
        found = undisturbed[setting.name]
        assert found["place"].tolist() == list(range(120))
        for place, header in enumerate(images.headers):
            shard = images.shards.open(header.reference.shard)
            pixels = decode_upright(shard.image(header.reference.member), header.native_size)
            batch = pack_images([pixels], setting.patch_size, setting.resolution)
            with torch.inference_mode():
                outputs = subject.model.outputs(batch)
            torch.testing.assert_close(found["0/logits"][place], outputs.logits[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found["0/features"][place], outputs.features[0], rtol=1e-4, atol=1e-4)
            assert found["0/logits"][place].argmax() == outputs.logits[0].argmax()
            assert found["tokens"][place] == batch.stats().tokens
            assert found["label"][place] == shard.label(header.reference.member)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers, images, subject, undisturbed, tmp_path):
    assert_same(columns(make(tmp_path, workers).collect(subject, images, SETTINGS)), undisturbed)


def test_an_engine_gives_what_ranks_give(images, subject, undisturbed, tmp_path):
    with LocalEngine() as engine:
        evaluation = replace(make(tmp_path), engine=engine, device="cpu")
        assert_same(columns(evaluation.collect(subject, images, SETTINGS)), undisturbed)
    [folder] = tmp_path.iterdir()
    (folder / "chunk-000002.safetensors").unlink()
    assert_same(
        columns(make(tmp_path).collect(subject, images, SETTINGS)), undisturbed
    )  # and goes on with it
    assert [folder] == list(tmp_path.iterdir())


def test_a_killed_pass_goes_on_with_the_chunks_that_are_missing(
    images, subject, undisturbed, tmp_path, monkeypatch
):
    real, written = ChunkStore.write, []

    def dying(self: ChunkStore, chunk: int, *arguments) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(chunk)
        real(self, chunk, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkStore, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path).collect(subject, images, SETTINGS)
    [folder] = tmp_path.iterdir()
    # A file that is cut off, as after a loss of power, counts as missing.
    first = folder / "chunk-000000.safetensors"
    first.write_bytes(first.read_bytes()[:-100])
    asked, pieces = [], EvalSet.pieces

    def spying(self: EvalSet, ways, tokens, chunks, *rest):
        asked.extend(chunks)
        return pieces(self, ways, tokens, chunks, *rest)

    monkeypatch.setattr(EvalSet, "pieces", spying)
    store = make(tmp_path, workers=2).collect(subject, images, SETTINGS)
    assert_same(columns(store), undisturbed)
    chunks = cut_chunks(120, SETTINGS)
    assert asked == [chunks[0], chunks[2], chunks[3]]
    asked.clear()
    assert_same(columns(make(tmp_path).collect(subject, images, SETTINGS)), undisturbed)
    assert asked == []


def test_what_another_evaluation_found_is_left_alone(images, subject, tmp_path):
    def folders(subject: Subject, evaluation: Evaluation, settings: list[Setting], images: EvalSet) -> int:
        evaluation.collect(subject, images, settings)
        return len(list(tmp_path.iterdir()))

    evaluation, few = make(tmp_path), SETTINGS[3:]
    assert folders(subject, evaluation, few, images) == 1
    assert folders(subject, evaluation, few, images) == 1
    assert folders(replace(subject, weights="other"), evaluation, few, images) == 2
    assert folders(replace(subject, evaluators=[Accuracy()]), evaluation, few, images) == 3
    assert folders(subject, evaluation, [Setting(16, 16, protocol="square")], images) == 4
    assert folders(subject, replace(evaluation, precision="bf16"), few, images) == 5
    fewer = EvalSet(images.shards.paths[:2], images.targets)
    assert folders(subject, evaluation, few, fewer) == 6


def test_chunks_hold_every_place_once_and_no_more_tokens_than_a_few_images_have():
    for number, settings in ((1, SETTINGS), (120, SETTINGS), (50_000, SETTINGS), (300, [Setting(1, 2000)])):
        chunks = cut_chunks(number, settings)
        assert [place for chunk in chunks for place in chunk] == list(range(number))
        assert max(map(len, chunks)) <= 256
    assert {len(chunk) for chunk in cut_chunks(300, [Setting(1, 2000)])} == {1}


class Brightness:
    """Keeps nothing of the model's answers; says how bright images are."""

    name = "brightness"

    def collect(self, outputs: Outputs, batch: PackedBatch) -> dict[str, Tensor]:
        [patches] = batch.patches.values()
        lengths = batch.image_lengths().tolist()
        return {"mean": torch.stack([part.double().mean() for part in patches.split(lengths)])}

    def summarise(self, columns):
        yield "share", columns["mean"].mean().item() / 255
        yield "unknown", None
        yield "brightness", columns["mean"]


def test_evaluators_decide_what_rows_and_predictions_hold(images, subject, tmp_path):
    several = replace(subject, evaluators=[Brightness(), Accuracy()])
    store = make(tmp_path).collect(several, images, SETTINGS[:1])
    row, arrays, _ = summarise(store, several, SETTINGS[0], "main")
    names = list(row)
    assert names[:2] == ["setting", "set"]
    assert names.index("share") < names.index("unknown") < names.index("accuracy")
    assert row["share"] == pytest.approx(arrays["brightness"].mean() / 255)
    assert row["unknown"] is None
    assert arrays["brightness"].dtype == np.float64
    assert {"place", "label", "tokens", "prediction", "confidence"} <= arrays.keys()
    flops = [subject.model.config.flops(int(n), 8) for n in arrays["tokens"]]
    assert row["gflops_per_image"] == pytest.approx(np.mean(flops) / 1e9, rel=1e-12)
    assert row["tokens_per_image"] == pytest.approx(arrays["tokens"].mean())


def test_a_set_without_an_image_that_can_be_decoded_is_said(images, subject, tmp_path, monkeypatch):
    def nothing(self: EvalSet, ways, tokens, chunks, *rest):
        for chunk, _ in enumerate(chunks):
            yield Piece(chunk, 0, torch.zeros(0, dtype=torch.int64), self.collate([]), last=True)

    monkeypatch.setattr(EvalSet, "pieces", nothing)
    with pytest.raises(ValueError, match="no image could be decoded in 3 shards"):
        make(tmp_path).collect(subject, images, SETTINGS)
