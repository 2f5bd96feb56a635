"""`packvit predict MODEL IMAGES...`: a model's predictions for images, as a stream.

Status 0: all images have an answer. 1: some are broken, and named. 130: interrupted; 141: the reader of
standard output has closed it, as `head` does.
"""

import io
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro
from rich.console import Console

from packvit.cli.options import read_options
from packvit.common.display import Bar
from packvit.data import FetchConfig
from packvit.data.stores.stage import write_file
from packvit.evaluate import Predictor
from packvit.evaluate.predict.read import Source
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
from packvit.models import AS_IT_IS, read_templates

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
        workers: threads that decode; by default one for each core.
        device: auto uses a GPU if there is one.
        fetch: how remote and gzipped shards are fetched.
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
    predictor = Predictor(
        options.model,
        options.plan,
        options.resolution,
        options.patch_size,
        options.tokens,
        options.protocol,
        top=options.top,
        features=options.features,
        device=options.device,
        precision=options.precision,
        loss=options.loss,
        batch_tokens=options.batch_tokens,
        workers=options.workers,
        labels=options.labels,
        templates=read_templates(options.templates) if options.templates else AS_IT_IS,
        tokenizer=options.tokenizer,
    )
    for line in filter(None, (predictor.choice.why, predictor.head.remark)):
        print(f"{line}.", file=sys.stderr)
    try:
        with open_writer(options, out, predictor) as writer:
            done = predict(predictor, found, writer, show=not is_table(options))
    except BrokenPipeError:
        # What is still buffered would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    rate = done.images / done.seconds
    count = "1 image" if done.images == 1 else f"{done.images} images"
    print(f"{count}, {done.broken} broken, {rate:.0f} images/s", file=sys.stderr)
    return SOME_BROKEN if done.broken else 0


class Done(NamedTuple):
    """Counts of images, and how long they took."""

    images: int
    broken: int
    seconds: float


def predict(predictor: Predictor, found: Found, writer: Writer, show: bool) -> Done:
    """Write the answers to all images, in their order.

    Args:
        show: a progress bar on standard error.
    """
    names: deque[str] = deque()

    def sources() -> Iterator[Source]:
        for image in found.images:
            names.append(image.name)
            yield image.source

    done = broken = 0
    began = time.perf_counter()
    bar = Bar(Console(stderr=True, quiet=not show), "predicting", found.number)
    # Closed at once when this ends early, so that nothing goes on decoding.
    with bar, closing(predictor.stream(sources())) as predictions:
        for prediction in predictions:
            done += 1
            writer.write(names.popleft(), prediction)
            broken += prediction.error is not None
            if done % SHOW_EVERY == 0:
                bar.update(done, state=f"{done / (time.perf_counter() - began):.0f} images/s")
    return Done(done, broken, time.perf_counter() - began)


def is_table(options: Predict) -> bool:
    """Whether the answers go to a person at a terminal."""
    return options.out is None and sys.stdout.isatty()


def open_writer(options: Predict, out: Path | None, predictor: Predictor) -> AbstractContextManager[Writer]:
    """Where the answers go."""
    if out is None:
        return open_stdout(is_table(options))
    top = min(options.top, predictor.head.num_classes)
    features = predictor.head.num_features if options.features else 0
    return open_file(out, columns(top, predictor.classes is not None, features))


@contextmanager
def open_stdout(table: bool) -> Iterator[Writer]:
    """Standard output as it is now: a progress bar puts another in its place."""
    writer = TableWriter(sys.stdout) if table else JsonWriter(sys.stdout)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def open_file(path: Path, names: list[str]) -> Iterator[Writer]:
    """A file; says where the answers are that were made before an interruption or a failure."""
    try:
        with open_out(path, names) as writer:
            yield writer
    except BaseException:
        print(f"packvit: the answers so far are in {partial_name(path)}", file=sys.stderr)
        raise
