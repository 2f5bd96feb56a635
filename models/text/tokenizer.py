"""Texts to tokens, by sentencepiece or Hugging Face's tokenizers; the file is kept with the model."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from packvit.common.optional import need
from packvit.models.text.config import TextConfig

PAD, EOS, UNKNOWN = 0, 1, 2  # of tokenisers that are trained here
FILES = ("tokenizer.model", "tokenizer.json")  # in a model's folder


class Tokenizer(Protocol):
    """The interface of tokenisers, which turn texts into tokens.

    Attributes:
        vocab_size: ids are below this.
        eos: the token that ends every text, or None.
    """

    vocab_size: int
    eos: int | None

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those that the tokeniser adds before and after it."""
        ...

    def save(self, folder: Path) -> Path:
        """Write the file that `load_tokenizer` reads; returns it."""
        ...


class SentencePiece:
    """A `.model` of sentencepiece; a text ends with its end-of-text token, if it has one.

    Args:
        model: the content of the file.

    Raises:
        ImportError: sentencepiece is not installed.
        ValueError: the content is not such a model.
    """

    def __init__(self, model: bytes) -> None:
        library = need("sentencepiece", "text", ".model tokenisers need sentencepiece")
        self.model = model
        self.processor: Any = library.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise ValueError("this is not a sentencepiece model") from None
        self.vocab_size: int = self.processor.GetPieceSize()
        eos = self.processor.eos_id()
        self.eos: int | None = eos if eos >= 0 else None

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        return self.processor.EncodeAsIds(text) + ([] if self.eos is None else [self.eos])

    def save(self, folder: Path) -> Path:
        """See Tokenizer."""
        (folder / FILES[0]).write_bytes(self.model)
        return folder / FILES[0]


class HuggingFaceTokenizer:
    """A `tokenizer.json` of Hugging Face's tokenizers, which defines the tokens before and after a text.

    Args:
        document: the content of the file.

    Raises:
        ImportError: tokenizers is not installed.
        ValueError: the content is not such a document.
    """

    def __init__(self, document: str) -> None:
        library = need("tokenizers", "text", "tokenizer.json files need tokenizers")
        try:
            self.tokenizer: Any = library.Tokenizer.from_str(document)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"this is not a tokenizer.json: {str(error).splitlines()[0]}") from None
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.vocab_size: int = self.tokenizer.get_vocab_size()
        ends = {ids[-1] for ids in map(self.encode, ("a", "b c")) if ids}
        self.eos: int | None = ends.pop() if len(ends) == 1 else None

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        return self.tokenizer.encode(text).ids

    def save(self, folder: Path) -> Path:
        """See Tokenizer."""
        (folder / FILES[1]).write_text(self.tokenizer.to_str(), encoding="utf-8")
        return folder / FILES[1]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A tokeniser from a `.model` or `.json` file, or from the folder of a model that has one.

    Raises:
        FileNotFoundError: there is none.
        ImportError: the library that reads it is not installed.
        ValueError: it cannot be read; names the file.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).exists()]
        if not found:
            raise FileNotFoundError(f"{path} holds neither {FILES[0]} nor {FILES[1]}")
        path = found[0]
    if not path.exists():
        raise FileNotFoundError(f"there is no tokeniser at {path}")
    if path.suffix not in (".model", ".json"):
        raise ValueError(f"{path} is not a tokeniser: it ends neither in .model nor in .json")
    try:
        if path.suffix == ".model":
            return SentencePiece(path.read_bytes())
        return HuggingFaceTokenizer(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SentencePiece:
    """A unigram model of sentencepiece (arXiv 1804.10959); the same texts give the same one.

    Args:
        texts: the texts to train on.
        vocab_size: maximum number of tokens; few texts give fewer. 0 pads texts, 1 ends them, 2 is unknown.

    Raises:
        ImportError: sentencepiece is not installed.
        ValueError: the texts are too few, or have more characters than there may be tokens.
    """
    library = need("sentencepiece", "text", "a tokeniser is trained with sentencepiece")
    written = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNKNOWN,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"no tokeniser of {vocab_size} tokens can be trained on these texts: {reason}"
        ) from None
    return SentencePiece(written.getvalue())


class Tokens(NamedTuple):
    """A text in the form that a tower takes: its tokens, and whether it was cut off."""

    ids: list[int]
    cut: bool


class TextEncoder:
    """Texts to the tokens that a text tower takes: never more than it has positions.

    Args:
        tokenizer: the tower's tokeniser.
        config: the tower's configuration.

    Raises:
        ValueError: the tokeniser has tokens that the tower lacks, so it belongs to another tower.
    """

    def __init__(self, tokenizer: Tokenizer, config: TextConfig) -> None:
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokeniser has {tokenizer.vocab_size} tokens, the text tower {config.vocab_size}: it "
                "belongs to another model"
            )
        self.tokenizer, self.config = tokenizer, config

    def __call__(self, text: str) -> Tokens:
        """The tokens; a text that is too long loses its end, but keeps the token that ends it.

        Raises:
            ValueError: nothing stands in the text.
        """
        ids, eos, most = self.tokenizer.encode(text), self.tokenizer.eos, self.config.max_tokens
        if not text.strip() or ids in ([], [eos]):
            raise ValueError("the text is empty")
        cut = len(ids) > most
        if cut:
            ids = ids[:most] if eos is None else [*ids[: most - 1], eos]
        if self.config.fixed_length:
            ids = ids + [self.config.pad_id] * (most - len(ids))
        return Tokens(ids, cut)
