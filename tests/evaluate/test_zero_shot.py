"""Names of classes and templates: what files may hold, and the mean of prompts."""

import json
from pathlib import Path

import pytest
import torch

from packvit.common.ranks import ALONE
from packvit.evaluate import TextEmbedder, embed_classes, read_names
from packvit.models import (
    LogitScale,
    Outputs,
    PackedText,
    TextConfig,
    TextEncoder,
    TextTower,
    train_tokenizer,
    unit,
)

WORDS = ("red", "green", "blue", "cat", "dog")
NAMES = (("red",), ("cat", "blue dog"))
TEMPLATES = ("{}", "a {} or a {}")


@pytest.fixture(scope="module")
def embed() -> TextEmbedder:
    texts = [f"a {one} {two} or a {three}" for one in WORDS for two in WORDS for three in WORDS]
    tokenizer = train_tokenizer(texts, 40)
    torch.manual_seed(0)
    config = TextConfig(width=16, depth=1, heads=2, vocab_size=40, max_tokens=12)
    return TextEmbedder(TextTower(config).eval(), TextEncoder(tokenizer, config), ALONE, "fp32", 20)


def test_packed_texts_are_embedded_as_each_alone_and_equal_ones_alike(embed):
    texts = ["red", "a dog or a cat", "red", "blue", "cat " * 12, "green"]
    found = embed(texts)
    assert found.cut == 1
    with torch.inference_mode():
        alone = [unit(embed.tower(PackedText.build([embed.encode(text).ids])))[0] for text in texts]
    torch.testing.assert_close(found.vectors, torch.stack(alone))
    assert torch.equal(found.vectors[0], found.vectors[2])


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts(embed):
    made = embed_classes(embed, LogitScale(8.0, -3.0), NAMES, TEMPLATES)
    prompts = [["red", "a red or a red"], ["cat", "a cat or a cat", "blue dog", "a blue dog or a blue dog"]]
    classes = torch.stack([unit(embed(own).vectors.mean(0, keepdim=True))[0] for own in prompts])
    images = torch.randn(5, 16)
    found = made(Outputs(images, images, images))
    torch.testing.assert_close(found, 8 * unit(images) @ classes.T - 3)
    other = embed_classes(embed, LogitScale(8.0, -3.0), NAMES, TEMPLATES[:1])
    assert made.name != other.name


def test_files_of_names(tmp_path):
    path = tmp_path / "file"
    path.write_text("red\n\n  two words \n")
    assert read_names(path) == [("red",), ("two words",)]
    path.write_text(json.dumps(["red", ["cat", "kitten"]]))
    assert read_names(path) == [("red",), ("cat", "kitten")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "holds no name"),
        ('["red", []]', "class 1 is neither a name nor a list"),
        ('["red", 3]', "class 1"),
        ("[", "not a JSON document"),
        ('{"a": 1}', "no list of names"),
    ],
)
def test_bad_files_are_refused_by_name(text, message, tmp_path):
    path = Path(tmp_path / "words.txt")
    path.write_text(text)
    with pytest.raises(ValueError, match=r"words\.txt") as error:
        read_names(path)
    assert message in str(error.value)
    with pytest.raises(ValueError, match=r"none\.txt cannot be read"):
        read_names(tmp_path / "none.txt")
