"""A request for an evaluation: its fields, their checks, and the settings that they make."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from packvit.data import FetchConfig
from packvit.evaluate.measures.calibration import LossKind
from packvit.evaluate.results import MAIN
from packvit.evaluate.setting import Setting, grid_settings
from packvit.models import PackedViT

NONE_GIVEN = {
    "shards": "there are no shards to evaluate on: name some, or take a run that has validation shards",
    "patch_sizes": "there are no patch sizes to evaluate at: name some, or take a run, which has its own",
}
Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
CHOICES = {
    "precision": get_args(Precision),
    "device": get_args(Device),
    "loss": (None, *get_args(LossKind)),
}


@dataclass(frozen=True)
class NamedSet:
    """The parts of a set: shards, and the file that defines the meaning of its labels, if there is one."""

    shards: Sequence[str]
    label_map: str | None = None
    label_sets: str | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that `packvit eval` and `packvit.evaluate` share; the texts are the help of the flags.

    Args:
        shards: webdataset shards: files, patterns or folders.
        resolutions: sides in pixels of the square with a view's area.
        patch_sizes: sides of a patch in pixels.
        strides: pixels from one patch to the next, for every resolution and every patch size that is at least
            as large; by default the patch size, or the strides with which the run was evaluated.
        tokens: for each number, the largest grid of at most so many tokens is evaluated, at the patch size
            that the results at --resolutions favour; without --resolutions, at all patch sizes.
        depths: numbers of blocks; for each, the first blocks of every model are evaluated with its head. For
            models that were trained at random depths (train.depths).
        protocol: native shows whole images at their aspect ratio, square squashes them to squares, crop:0.875
            shows the central square whose side is that share of the shorter side.
        multi_label: images of sets without a label map or label sets have any number of classes; average
            precision is measured.
        corruptions: all, kinds such as fog, or fog:3; each kind and strength makes a set from the main one.
        out: folder for results.json, predictions.npz and so on; by default MODEL/eval. Existing results are
            kept under another name.
        save_predictions: predictions.npz also holds all logits, and is written for every corrupted set, too.
        features: predictions.npz also holds the inputs of the head, or an image tower's embeddings.
        loss: the loss that the models were trained with, which determines how logits become probabilities; by
            default that of the run's configuration, or softmax.
        cost: whether throughput, latency and memory are measured.
        seq_len: seq_len times `sequences` is the number of tokens in a batch; a longer view has a batch of
            its own.
        sequences: see `seq_len`.
        precision: precision of matrix products; auto is bf16 on CUDA and fp32 on a CPU.
        workers: processes of each rank that decode.
        device: auto uses a GPU if there is one.
        class_names: for two towers: file with one class name a line, or a JSON list of names or of lists of
            names that mean the same class; by default classes.json beside the shards.
        templates: for two towers: file with one template a line, such as `a photo of a {}.`; by default the
            name alone.
        captions: for two towers: field of every sample's captions, txt or json:PLACE, for retrieval; by
            default that of the run.
        tokenizer: tokeniser of the text tower, .model or .json; by default the one in the model's folder.
        label_field: field of every sample's label, such as cls or json:label; by default that of the run, or
            cls.
        fetch: how remote and gzipped shards are fetched.
    """

    shards: tuple[str, ...] = ()
    resolutions: tuple[int, ...] = ()
    patch_sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    protocol: str = "native"
    multi_label: bool = False
    corruptions: tuple[str, ...] = ()
    out: Path | None = None
    save_predictions: bool = False
    features: bool = False
    loss: LossKind | None = None
    cost: bool = True
    seq_len: int = 1024
    sequences: int = 8
    precision: Precision = "auto"
    workers: int = 1
    device: Device = "auto"
    class_names: Path | None = None
    templates: Path | None = None
    captions: str = ""
    tokenizer: Path | None = None
    label_field: str | None = None
    fetch: FetchConfig = field(default_factory=FetchConfig)


@dataclass(frozen=True, kw_only=True)
class Request(Options):
    """What is evaluated and how; see also `Options`.

    Args:
        models: paths that load_model or load_two_towers reads, or models in memory.
        sets: further sets by name.
    """

    models: tuple[Path | PackedViT, ...]
    sets: Mapping[str, NamedSet] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse sizes below 1, and options that exclude each other.

        Raises:
            ValueError: names the field.
        """
        if self.multi_label and self.corruptions:
            raise ValueError(
                "corruptions are summed up as accuracy, which images with several labels (multi_label) do "
                "not have"
            )
        if not self.models:
            raise ValueError("there is no model to evaluate: name at least one")
        if self.strides and self.tokens and self.resolutions:
            raise ValueError(
                "strides do not go with both resolutions and tokens, where the grid of resolutions chooses "
                "patch sizes for the tokens: give one of the two"
            )
        for name in ("resolutions", "patch_sizes", "strides", "tokens", "depths"):
            for value in getattr(self, name):
                if value < 1:
                    raise ValueError(f"{name}: every value must be at least 1, not {value}")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must not be negative")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(str, known))}")

    def check_complete(self) -> None:
        """Refuse a request that has nothing to evaluate on or at.

        Raises:
            ValueError: says what is missing.
        """
        for name, sentence in NONE_GIVEN.items():
            if not getattr(self, name):
                raise ValueError(sentence)
        if not self.resolutions and not self.tokens:
            raise ValueError("there are no resolutions to evaluate at: name some, or numbers of tokens")

    def settings(self) -> tuple[list[Setting], tuple[int, ...]]:
        """The settings of the grid, and the numbers of tokens for which its results choose a patch size.

        Raises:
            ValueError: there is no such protocol, or a patch size is smaller than the strides.
        """
        sizes, protocol, tokens = distinct(self.patch_sizes), self.protocol, distinct(self.tokens)
        strides = distinct(self.strides)
        if not self.resolutions:
            every = product(tokens, sizes, strides or (None,))
            return [Setting(p, tokens=n, protocol=protocol, stride=stride) for n, p, stride in every], ()
        return grid_settings(sizes, distinct(self.resolutions), strides, protocol), tokens

    def every_set(self, taken: Collection[str]) -> dict[str, NamedSet]:
        """The sets by name, the main one first.

        Args:
            taken: names that no set may have, because corrupted sets have them.

        Raises:
            ValueError: a name cannot be used.
        """
        for name in self.sets:
            if not re.fullmatch(r"[\w.-]+", name) or name == MAIN:
                raise ValueError(
                    f"{name!r} cannot name a set: a name has letters, digits, ., - and _, and is not {MAIN}"
                )
            if name in taken:
                raise ValueError(f"{name} is the name of a corrupted set: give the other set another name")
        return {MAIN: NamedSet(self.shards), **self.sets}


def distinct(values: Iterable[int]) -> tuple[int, ...]:
    """Each value once, in the order in which they come first."""
    return tuple(dict.fromkeys(values))
