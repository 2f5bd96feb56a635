"""`packvit predict MODEL IMAGES...`: a model's predictions for images, as a stream.

Status 0: all images have an answer. 1: some are broken, and named. 130: interrupted; 141: the reader of
standard output has closed it, as `head` does.
"""

import io
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro
from rich.console import Console

from packvit.cli.options import read_options
from packvit.common.display import Bar
from packvit.common.engine.engine import EngineConfig
from packvit.common.engine.make import EngineFlags, make_engine
from packvit.data import FetchConfig
from packvit.data.stores.stage import write_file
from packvit.evaluate import Prediction, Predictor
from packvit.evaluate.predict.parts import answer_here, answer_parts
from packvit.evaluate.predict.sources import Found, find_named
from packvit.evaluate.predict.write import (
    JsonWriter,
    TableWriter,
    Writer,
    check_kind,
    check_out,
    columns,
    open_out,
    partial_name,
)
from packvit.models import AS_IT_IS, hash_model, read_templates

SOME_BROKEN = 1
READER_GONE = 141  # what shells see of a program that SIGPIPE ended: 128 + SIGPIPE
SHOW_EVERY = 64  # images


@dataclass(frozen=True)
class Predict:
    """Classify any number of images of any sizes.

    Without --plan, --resolution and --tokens, the most accurate setting in MODEL/eval/results.json is used.

    Args:
        model: a run's folder, a checkpoint, or any file that load_model reads.
        images: files, folders with everything below them, globs, shards and their URLs, or - for names on
            standard input, one a line.
        plan: plan.json of this model; sets resolution, patch size, tokens and protocol.
        resolution: side in pixels of the square with a view's area.
        patch_size: side in pixels; by default that of the model's stored patch embedding.
        tokens: maximum number of tokens of an image, instead of a resolution.
        protocol: native shows whole images at their aspect ratio, square squashes them to squares, crop:0.875
            shows the central square with that share of the shorter side.
        labels: texts that a model of images and texts chooses from, such as "a cat" "a dog".
        templates: file with one template a line, such as `a photo of a {}.`; a class is the mean over all
            templates.
        tokenizer: tokeniser of a model of images and texts; by default the one beside its weights.
        top: number of classes in an answer.
        features: also write the input of the model's head; for a model of images and texts, the embedding.
        loss: the loss that the model was trained with, which turns logits into scores; by default that of its
            run's configuration, or according to the bias of a model of images and texts, or softmax.
        out: .jsonl, .csv or .parquet file, replaced when all is done, local or in an object store; by default
            lines of JSON, or a table in a terminal, on standard output.
        null: names on standard input end with NUL, as find -print0 writes them.
        precision: precision of matrix products; auto is bf16 on CUDA and fp32 on a CPU.
        batch_tokens: maximum number of tokens in a batch.
        workers: threads that decode; by default one for each core. With --engine ray, the threads beside each
            GPU.
        device: auto uses a GPU if there is one.
        fetch: how remote and gzipped shards are fetched.
        engine: see its flags.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES...")]
    plan: Path | None = None
    resolution: int | None = None
    patch_size: int | None = None
    tokens: int | None = None
    protocol: str | None = None
    labels: tuple[str, ...] = ()
    templates: Path | None = None
    tokenizer: Path | None = None
    top: int = 5
    features: bool = False
    loss: Literal["softmax", "sigmoid"] | None = None
    out: str | None = None
    null: Annotated[bool, tyro.conf.arg(aliases=["-0"])] = False
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    batch_tokens: int = 8192
    workers: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    fetch: FetchConfig = field(default_factory=FetchConfig)
    engine: EngineFlags = field(default_factory=EngineConfig)


def main(arguments: Sequence[str]) -> int:
    """Predict; returns the exit status."""
    options = read_options(Predict, "packvit predict", arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "packvit predict runs in one process: start it without torchrun, once for each GPU with a share "
            "of the images"
        )
    if options.templates is not None and not options.labels:
        raise ValueError("--templates are for --labels: give the labels to put into them")
    if options.out is None:
        if options.engine.engine == "ray":
            raise ValueError("--engine ray needs --out, a file for the answers")
        return answer(options, None)
    check_kind(options.out)
    statuses: list[int] = []
    write_file(options.out, lambda out: statuses.append(answer(options, out)))
    return statuses[0]


def answer(options: Predict, out: Path | None) -> int:
    """Predict, to a local file or standard output; returns the exit status."""
    if out is not None:
        check_out(out)
    # A program that is started without standard input, as with `<&-`, has None.
    stdin = sys.stdin.buffer if sys.stdin else io.BytesIO()
    found = find_named(options.images, stdin, b"\0" if options.null else b"\n", options.fetch)
    local = options.engine.engine == "local"
    predictor = make_predictor(options, options.device if local else "cpu", options.workers)
    for line in filter(None, (predictor.choice.why, predictor.head.remark)):
        print(f"{line}.", file=sys.stderr)
    if not local:
        assert out is not None
        return answer_on_cluster(options, predictor, found, out)
    try:
        with (
            open_writer(options, out, predictor) as writer,
            closing(answer_here(predictor, found)) as answers,
        ):
            done = write_answers(answers, found.number, writer, show=not is_table(options))
    except BrokenPipeError:
        # What is still buffered would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return done.say()


def answer_on_cluster(options: Predict, predictor: Predictor, found: Found, out: Path) -> int:
    """Let a cluster predict, a shard or some files at a time; returns the exit status.

    Args:
        predictor: as all processes make it.
    """
    weights = hash_model(predictor.vit)
    given = (options.labels, predictor.templates, options.tokenizer, options.model, options.device)
    asked = (weights, predictor.choice.stages, predictor.loss, predictor.classes, options.batch_tokens)
    kept = (options.top, options.features, options.precision)
    folder = out.with_name(f".{out.name}.parts")
    setup = partial(make_same_predictor, options, weights)
    with make_engine(options.engine, Console(stderr=True)) as engine:
        answers = answer_parts(engine, found, repr((given, asked, kept)), folder, setup, options.device)
        with open_file(out, make_columns(options, predictor), folder) as writer:
            done = write_answers(answers, found.number, writer, show=False)
    shutil.rmtree(folder)
    return done.say()


def make_predictor(options: Predict, device: str, workers: int | None = None) -> Predictor:
    """The predictor that is asked for, on a device."""
    return Predictor(
        options.model,
        options.plan,
        options.resolution,
        options.patch_size,
        options.tokens,
        options.protocol,
        top=options.top,
        features=options.features,
        device=device,
        precision=options.precision,
        loss=options.loss,
        batch_tokens=options.batch_tokens,
        workers=workers,
        labels=options.labels,
        templates=read_templates(options.templates) if options.templates else AS_IT_IS,
        tokenizer=options.tokenizer,
    )


def make_same_predictor(options: Predict, weights: str, device: str) -> Predictor:
    """The predictor of a cluster's process.

    Args:
        weights: hash of the model that it must be of.

    Raises:
        ValueError: it is of another one.
    """
    # A process on a CPU has one core, and the model needs it.
    predictor = make_predictor(options, device, 0 if device == "cpu" else options.workers)
    if hash_model(predictor.vit) != weights:
        raise ValueError(f"{options.model} is not the same on all machines")
    return predictor


class Done(NamedTuple):
    """Counts of images, and how long they took."""

    images: int
    broken: int
    seconds: float

    def say(self) -> int:
        """Say it; returns the exit status."""
        count = "1 image" if self.images == 1 else f"{self.images} images"
        print(f"{count}, {self.broken} broken, {self.images / self.seconds:.0f} images/s", file=sys.stderr)
        return SOME_BROKEN if self.broken else 0


def write_answers(
    answers: Iterator[tuple[str, Prediction]], number: int | None, writer: Writer, show: bool
) -> Done:
    """Write the answers to all images, in their order.

    Args:
        number: of images, if it is known.
        show: a progress bar on standard error.
    """
    done = broken = 0
    began = time.perf_counter()
    with Bar(Console(stderr=True, quiet=not show), "predicting", number) as bar:
        for name, prediction in answers:
            done += 1
            writer.write(name, prediction)
            broken += prediction.error is not None
            if done % SHOW_EVERY == 0:
                bar.update(done, state=f"{done / (time.perf_counter() - began):.0f} images/s")
    return Done(done, broken, time.perf_counter() - began)


def is_table(options: Predict) -> bool:
    """Whether the answers go to a person at a terminal."""
    return options.out is None and sys.stdout.isatty()


def open_writer(options: Predict, out: Path | None, predictor: Predictor) -> AbstractContextManager[Writer]:
    """Where the answers go."""
    return open_stdout(is_table(options)) if out is None else open_file(out, make_columns(options, predictor))


def make_columns(options: Predict, predictor: Predictor) -> list[str]:
    """The columns of flat formats."""
    top = min(options.top, predictor.head.num_classes)
    features = predictor.head.num_features if options.features else 0
    return columns(top, predictor.classes is not None, features)


@contextmanager
def open_stdout(table: bool) -> Iterator[Writer]:
    """Standard output as it is now: a progress bar puts another in its place."""
    writer = TableWriter(sys.stdout) if table else JsonWriter(sys.stdout)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def open_file(path: Path, names: list[str], kept: Path | None = None) -> Iterator[Writer]:
    """A file; says where the answers are that were made before an interruption or a failure.

    Args:
        kept: their folder, if they are not in the file itself.
    """
    try:
        with open_out(path, names) as writer:
            yield writer
    except BaseException:
        print(f"packvit: the answers so far are in {kept or partial_name(path)}", file=sys.stderr)
        raise
