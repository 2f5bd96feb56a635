"""Two towers predict whatever classes they are given as texts, and a model of one tower none."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from packvit.cli import dispatch
from packvit.common.device import make_autocast
from packvit.common.ranks import ALONE
from packvit.data import pack_images
from packvit.evaluate import Predictor, Setting, TextEmbedder, embed_classes
from packvit.evaluate.plan.plan import Stage
from packvit.evaluate.predict.choose import Choice, for_labels
from packvit.evaluate.predict.heads import TextHead
from packvit.models import (
    PackedText,
    PackedViT,
    TextConfig,
    TextEncoder,
    Tokenizer,
    TwoTowers,
    TwoTowersConfig,
    ViTConfig,
    load_tokenizer,
    load_two_towers,
    save_model,
    save_two_towers,
    train_tokenizer,
)

LABELS = ("a red cat", "a blue dog", "a green bird")
TEMPLATES = ("{}", "a photo of {}")
TEXT = TextConfig(width=16, depth=1, heads=2, vocab_size=60, max_tokens=30, embed_dim=12)
IMAGE = ViTConfig(width=32, depth=1, heads=2, num_classes=12, patch_buffer=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder of two towers and their tokeniser."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("towers")
    texts = [template.replace("{}", label) for template in TEMPLATES for label in LABELS]
    train_tokenizer(texts * 4, 60).save(folder)
    towers = TwoTowers(TwoTowersConfig(image=IMAGE, text=TEXT, temperature=5.0, bias=None))
    return save_two_towers(towers, folder)


@pytest.fixture
def tokenizer(model) -> Tokenizer:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(3)]


def by_hand(
    towers: TwoTowers, tokenizer: Tokenizer, pictures: list[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines [images, labels] and the images' embeddings, as the definition reads."""
    encode = TextEncoder(tokenizer, TEXT)
    classes = []
    for label in LABELS:
        prompts = [encode(template.replace("{}", label)).ids for template in TEMPLATES]
        classes.append(F.normalize(towers.text(PackedText.build(prompts)), dim=1).mean(0))
    images = F.normalize(towers.image(pack_images(pictures, patch_size=8)), dim=1)
    return images @ F.normalize(torch.stack(classes), dim=1).T, images


@torch.inference_mode()
@pytest.mark.parametrize("bias", [None, -3.0])
def test_probabilities_are_softmax_or_with_a_bias_sigmoid(model, tokenizer, pictures, bias):
    towers = load_two_towers(model)
    if bias is not None:
        state = towers.state_dict() | {"logits.b": torch.tensor([bias])}
        towers = TwoTowers(replace(towers.config, bias=bias)).eval()
        towers.load_state_dict(state)
    logits = 5 * by_hand(towers, tokenizer, pictures)[0] + (bias or 0)
    expected = logits.softmax(1) if bias is None else logits.sigmoid()
    options = {"resolution": 16, "patch_size": 8, "labels": LABELS, "templates": TEMPLATES}
    answers = Predictor(towers, tokenizer=tokenizer, **options)(pictures)  # pyright: ignore[reportArgumentType]
    for answer, row in zip(answers, expected, strict=True):
        assert answer.labels == tuple(row.argsort(descending=True).tolist())
        assert answer.scores == pytest.approx(row.sort(descending=True).values.tolist(), abs=1e-5)
        assert answer.names == tuple(LABELS[label] for label in answer.labels)


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_those_of_an_evaluation(model, tokenizer, pictures, precision):
    towers = load_two_towers(model)
    head = TextHead(towers, tokenizer, LABELS, TEMPLATES, precision)
    embed = TextEmbedder(towers.text, TextEncoder(tokenizer, TEXT), ALONE, precision, 1000)
    scores = embed_classes(embed, towers.logits, [(label,) for label in LABELS], TEMPLATES)
    with make_autocast(precision, torch.device("cpu")):
        outputs = towers.image.outputs(pack_images(pictures, patch_size=8))
        predicted, evaluated = head(outputs).logits, scores(outputs)
    assert predicted is not None
    assert predicted.dtype == evaluated.dtype == torch.float32
    assert torch.equal(predicted, evaluated)


@torch.inference_mode()
def test_features_are_embeddings_of_length_one(model, tokenizer, pictures):
    embedded = by_hand(load_two_towers(model), tokenizer, pictures)[1]
    answers = Predictor(model, resolution=16, patch_size=8, features=True)(pictures)
    for answer, row in zip(answers, embedded, strict=True):
        assert answer.labels == answer.scores == ()
        assert answer.names is None
        assert answer.features == pytest.approx(row.numpy(), abs=1e-5)


def test_what_does_not_go_together_is_refused_in_a_sentence(model, tmp_path):
    with pytest.raises(ValueError, match="no classes of its own: give labels to choose from"):
        Predictor(model)
    one = save_model(PackedViT(replace(IMAGE, num_classes=3)), tmp_path / "one")
    with pytest.raises(ValueError, match="the model has no text tower: only models of images and texts"):
        Predictor(one, labels=LABELS)
    alone = save_two_towers(load_two_towers(model), tmp_path / "alone")
    with pytest.raises(ValueError, match="no tokeniser beside its weights, which labels need"):
        Predictor(alone, labels=LABELS)
    assert Predictor(alone, labels=LABELS, tokenizer=model).classes == LABELS
    with pytest.raises(ValueError, match="must be lists"):
        Predictor(model, labels="cat")
    texts = [f"{a}{b}{c}" for a in "abcdef" for b in "ghijkl" for c in "mnopqr"]
    large = train_tokenizer([*texts, *(text[::-1] for text in texts)] * 9, 200)
    assert large.vocab_size > 60
    with pytest.raises(ValueError, match="the text tower 60: it belongs to another model"):
        Predictor(model, labels=LABELS, tokenizer=large)


def test_what_was_measured_of_other_classes_is_a_setting_alone():
    choice = Choice((Stage(Setting(8, 16), 2.5),), "as planned")
    assert for_labels(choice, LABELS, LABELS) == choice
    for measured in (None, LABELS[:2]):
        assert for_labels(choice, LABELS, measured).stages == (Stage(Setting(8, 16), 1.0),)
    cascade = Choice((Stage(Setting(16, 16), 1.0, 0.5), *choice.stages), "as planned")
    assert for_labels(cascade, LABELS, LABELS) == cascade
    with pytest.raises(ValueError, match="thresholds for other labels"):
        for_labels(cascade, LABELS, None)


def test_the_command_takes_labels_and_templates(model, pictures, tmp_path, capsys):
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    images = [str(tmp_path / f"{number}.png") for number in range(3)]
    setting = ["--resolution", "16", "--patch-size", "8", "--device", "cpu"]
    command = ["predict", str(model), *images, *setting]
    templates = ["--templates", str(tmp_path / "templates.txt")]
    assert dispatch([*command, "--labels", *LABELS, *templates]) == 0
    found = capsys.readouterr()
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert [set(line["names"]) for line in lines] == [set(LABELS)] * 3
    assert [sum(line["scores"]) for line in lines] == pytest.approx([1, 1, 1])
    assert "are cut off" not in found.err

    table = ["--features", "--top", "2", "--out", str(tmp_path / "out.csv")]
    assert dispatch([*command, "--labels", "a red cat " * 20, *LABELS, *table]) == 0
    assert "1 of 4 prompts have more than 30 tokens and are cut off." in capsys.readouterr().err
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"label_2", "name_2", "feature_11"} <= rows[0].keys()
    assert not {"label_3", "feature_12"} & rows[0].keys()

    for more, message in ((templates, "--templates are for --labels"), ([], "give labels to choose from")):
        assert dispatch([*command, *more]) == 2
        assert message in capsys.readouterr().err
