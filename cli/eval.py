"""`packvit eval MODEL... ...`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from packvit.cli.eval_sets import name_sets
from packvit.data import FetchConfig
from packvit.evaluate import LossKind
from packvit.evaluate.request.carry_out import carry_out
from packvit.evaluate.request.request import Request


@dataclass(frozen=True)
class Eval:
    """Evaluate models at every resolution and patch size asked for, in one pass over the images.

    A command that was killed goes on where it was. Of a run's folder, what is not given of --shards,
    --label-field, --multi-label, --resolutions and --patch-sizes is that of its configuration. Two towers
    classify by names of classes where --class-names, --templates or classes.json beside the shards names
    them, and retrieve captions otherwise; with --captions they retrieve, too.

    Args:
        models: runs' folders, checkpoints, or any files that load_model or load_two_towers reads.
        shards: webdataset shards: files, patterns or folders.
        resolutions: sides in pixels of the square with a view's area.
        patch_sizes: sides of a patch in pixels.
        strides: pixels from one patch to the next, with every resolution and every patch size that is not
            smaller; by default the patch size, or as the run was evaluated.
        tokens: for each, the largest grid of at most so many tokens is evaluated, at the patch size that the
            results at --resolutions favour; without --resolutions at all patch sizes.
        depths: numbers of blocks: of every model so many of its first ones are evaluated, with its head, as
            models can be used that were trained at random depths (train.depths).
        protocol: native shows whole images at their aspect ratio, square squashes them to squares, crop:0.875
            shows the central square whose side is that share of the shorter side.
        sets: further sets as NAME=SHARDS; a name that is given again adds shards.
        label_map: NAME=FILE, a JSON file with the model's classes that each label of one of --sets means.
        label_sets: NAME=FILE, a JSON file with all right answers to each image of one of --sets.
        multi_label: images of the other sets have any number of classes; average precision is measured.
        corruptions: all, kinds such as fog, or fog:3; each at each strength makes a set of the main one.
        out: folder for results.json, predictions.npz and so on; by default MODEL/eval. Results that are there
            already are kept under another name.
        save_predictions: predictions.npz also holds all logits, and there is one for every corrupted set.
        features: predictions.npz also holds what enters the head, or an image tower's embeddings.
        loss: that the models were trained with, which says how logits become probabilities; by default what
            a run's configuration says, else softmax.
        cost: whether throughput, latency and memory are measured.
        seq_len: times `sequences`, the tokens of a batch; a longer view has a batch of its own.
        sequences: see `seq_len`.
        precision: of matrix products; auto is bf16 on CUDA and fp32 on a CPU.
        workers: processes of each rank that decode.
        device: auto takes a GPU when there is one.
        class_names: for two towers: file with a name of each class in a line, or a JSON list of names or of
            lists of names that mean the same; by default classes.json beside the shards.
        templates: for two towers: file with a template in a line, such as `a photo of a {}.`; by default the
            name alone.
        captions: for two towers: field of every sample's captions, txt or json:PLACE, for retrieval; by
            default that of the run.
        tokenizer: of the text tower, .model or .json; by default the one in the model's folder.
        label_field: of every sample, such as cls or json:label; by default that of the run, else cls.
        fetch: how remote and gzipped shards are fetched.
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")]
    shards: tuple[str, ...] = ()
    resolutions: tuple[int, ...] = ()
    patch_sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    protocol: str = "native"
    sets: tuple[str, ...] = ()
    label_map: tuple[str, ...] = ()
    label_sets: tuple[str, ...] = ()
    multi_label: bool = False
    corruptions: tuple[str, ...] = ()
    out: Path | None = None
    save_predictions: bool = False
    features: bool = False
    loss: LossKind | None = None
    cost: bool = True
    seq_len: int = 1024
    sequences: int = 8
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    workers: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    class_names: Path | None = None
    templates: Path | None = None
    captions: str = ""
    tokenizer: Path | None = None
    label_field: str | None = None
    fetch: FetchConfig = field(default_factory=FetchConfig)


def main(arguments: Sequence[str]) -> None:
    """Evaluate."""
    carry_out(to_request(tyro.cli(Eval, prog="packvit eval", args=arguments)))


def to_request(options: Eval) -> Request:
    """What the flags ask for.

    Raises:
        ValueError: --sets, --label-map or --label-sets are not of their form.
    """
    given = {f.name: getattr(options, f.name) for f in fields(Request) if f.name != "sets"}
    return Request(sets=name_sets(options.sets, options.label_map, options.label_sets), **given)
