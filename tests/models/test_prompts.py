"""Names of classes are embedded as the mean of their prompts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from packvit.models import (
    PackedText,
    TextConfig,
    TextEncoder,
    Tokenizer,
    TwoTowers,
    TwoTowersConfig,
    ViTConfig,
    embed_prompts,
    embed_tokens,
    read_templates,
    train_tokenizer,
)

NAMES = ("red cat", "blue dog", "{0}", "cat")
TEMPLATES = ("{}", "a photo of a {}.", "a {} and a {}")
TEXT = TextConfig(width=16, depth=1, heads=2, vocab_size=60, max_tokens=40, embed_dim=16)
IMAGE = ViTConfig(width=16, depth=1, heads=2, num_classes=0, patch_buffer=8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([t.replace("{}", name) for t in TEMPLATES for name in NAMES] * 4, 60)


@pytest.fixture(scope="module")
def towers() -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(TwoTowersConfig(image=IMAGE, text=TEXT)).double().eval()


def test_a_name_is_the_mean_of_its_prompts_of_length_one(tokenizer, towers):
    encode = TextEncoder(tokenizer, TEXT)
    found = embed_prompts(towers, encode, NAMES, TEMPLATES)
    for name, row in zip(NAMES, found, strict=True):
        prompts = [name, f"a photo of a {name}.", f"a {name} and a {name}"]
        each = [towers.text(PackedText.build([encode(prompt).ids]))[0] for prompt in prompts]
        mean = torch.stack([F.normalize(one, dim=0) for one in each]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), rtol=0, atol=1e-12)
    alone = embed_prompts(towers, encode, NAMES[:1])
    torch.testing.assert_close(alone[0], towers.embed_texts(PackedText.build([encode("red cat").ids]))[0])


def test_batches_change_nothing(tokenizer, towers):
    encode = TextEncoder(tokenizer, TEXT)
    texts = [encode(" ".join(["cat"] * number)) for number in range(1, 9)]
    whole = embed_tokens(towers, texts)
    for most in (1, 7):
        torch.testing.assert_close(embed_tokens(towers, texts, most), whole, rtol=0, atol=1e-12)


def test_prompts_that_are_too_long_lose_their_end_as_captions_do(tokenizer, towers):
    encode = TextEncoder(tokenizer, replace(TEXT, max_tokens=8))
    long, longer = embed_prompts(towers, encode, ("cat " * 9, "cat " * 10))
    assert torch.equal(long, longer)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ((), TEMPLATES, "no names of classes"),
        (("cat", " "), TEMPLATES, "name of class 1 is empty"),
        (("cat",), (), "there is no template"),
        (("cat",), ("a photo",), "'a photo' has no {} where the name goes"),
    ],
)
def test_what_makes_no_prompt_is_refused(tokenizer, towers, names, templates, message):
    with pytest.raises(ValueError, match=message):
        embed_prompts(towers, TextEncoder(tokenizer, TEXT), names, templates)


def test_templates_are_lines_of_a_file(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("a photo of a {}.\n\n  a drawing of {} \n")
    assert read_templates(file) == ("a photo of a {}.", "a drawing of {}")
    for content, message in (("", "there is no template"), ("{}\na cat\n", "'a cat' has no {}")):
        file.write_text(content)
        with pytest.raises(ValueError, match=rf"templates\.txt: .*{message}"):
            read_templates(file)
    file.write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match=r"templates\.txt: .*no UTF-8"):
        read_templates(file)
    with pytest.raises(ValueError, match=r"templates cannot be read \(No such file"):
        read_templates(tmp_path / "none.txt")
