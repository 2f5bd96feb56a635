"""Tokenisers: trained on captions, read from the field's files, kept with a model."""

import json
import pickle
from dataclasses import replace

import pytest

from packvit.models import TextConfig, TextEncoder, load_tokenizer, train_tokenizer

COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
CAPTIONS = [
    f"a {size} {colour} {digit}" for size in ("big", "small") for colour in COLOURS for digit in range(10)
]
CONFIG = TextConfig(width=8, heads=1, vocab_size=80, max_tokens=6)


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(CAPTIONS, 80)


@pytest.fixture
def words(tmp_path):
    """A tokenizer.json of whole words that ends each text with [SEP], and pads and cuts by itself."""
    vocab = {"[UNK]": 0, "[SEP]": 1, "a": 2, "red": 3, "blue": 4, "cat": 5}
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A [SEP]", special_tokens=[("[SEP]", 1)]
    )
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_training_gives_the_same_tokens_each_time_and_no_more_than_asked(trained):
    again = train_tokenizer(CAPTIONS, 80)
    assert again.model == trained.model
    assert trained.vocab_size <= 80
    encoded = {tuple(trained.encode(caption)) for caption in CAPTIONS}
    assert len(encoded) == len(CAPTIONS)
    assert all(ids[-1] == trained.eos and max(ids) < trained.vocab_size for ids in encoded)


def test_it_is_kept_with_a_model_and_sent_to_workers(trained, tmp_path):
    trained.save(tmp_path)
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(trained))):
        assert [other.encode(caption) for caption in CAPTIONS] == [trained.encode(c) for c in CAPTIONS]


def test_tokenizer_json_is_read_and_neither_pads_nor_cuts(words, tmp_path):
    tokenizer = load_tokenizer(words)
    assert tokenizer.encode("a red dog") == [2, 3, 0, 1]
    assert (tokenizer.vocab_size, tokenizer.eos) == (6, 1)
    assert load_tokenizer(tokenizer.save(tmp_path)).encode("a blue cat") == [2, 4, 5, 1]
    assert pickle.loads(pickle.dumps(tokenizer)).encode("cat") == [5, 1]


def test_long_texts_are_cut_counted_and_still_end(words):
    encode = TextEncoder(load_tokenizer(words), CONFIG)
    assert encode("a red cat") == ([2, 3, 5, 1], False)
    assert encode("a red cat a cat") == ([2, 3, 5, 2, 5, 1], False)
    assert encode("a red cat a blue cat") == ([2, 3, 5, 2, 4, 1], True)
    filled = TextEncoder(load_tokenizer(words), replace(CONFIG, fixed_length=True, pad_id=7))
    assert filled("a red cat") == ([2, 3, 5, 1, 7, 7], False)


def test_a_tokenizer_without_an_end_loses_the_last_tokens(words):
    document = json.loads((words / "tokenizer.json").read_text())
    document["post_processor"] = None
    (words / "tokenizer.json").write_text(json.dumps(document))
    encode = TextEncoder(load_tokenizer(words), replace(CONFIG, max_tokens=2))
    assert encode.tokenizer.eos is None
    assert encode("a red cat") == ([2, 3], True)


def test_empty_texts_are_refused(trained, words):
    for tokenizer in (trained, load_tokenizer(words)):
        for text in ("", " \n", "\u200b" if tokenizer is trained else "\t"):
            with pytest.raises(ValueError, match="the text is empty"):
                TextEncoder(tokenizer, CONFIG)(text)


def test_wrong_files_and_the_tokenizer_of_another_model_are_refused(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither tokenizer\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no tokeniser"):
        load_tokenizer(tmp_path / "words.model")
    for name, reason in (
        ("a.model", "not a sentencepiece"),
        ("a.json", r"not a tokenizer\.json"),
        ("a.txt", "ends neither"),
    ):
        (tmp_path / name).write_text("nothing")
        with pytest.raises(ValueError, match=rf"{name}.*{reason}"):
            load_tokenizer(tmp_path / name)
    with pytest.raises(ValueError, match="the text tower 10: it belongs to another model"):
        TextEncoder(trained, replace(CONFIG, vocab_size=10))
    with pytest.raises(ValueError, match="no tokeniser of 5 tokens can be trained"):
        train_tokenizer(CAPTIONS, 5)
