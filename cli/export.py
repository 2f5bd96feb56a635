"""`packvit export MODEL OUT [--format onnx|torch|hub|siglip2]`: a model to use without packvit."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from packvit.cli.options import read_options
from packvit.evaluate import check_settings, loss_kind
from packvit.evaluate.export.card import hub_difference, read_results, write_hub
from packvit.evaluate.export.siglip2 import siglip2_difference, write_siglip2
from packvit.evaluate.export.verify import check_difference, graph_difference
from packvit.evaluate.export.write import FILES, Answers, whole_folder, write_fixed, write_packed
from packvit.evaluate.results import ResultsFile
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT, load_model

FORMATS = ("onnx", "torch", "hub", "siglip2")


@dataclass(frozen=True)
class Export:
    """Write a model in a form that runs without packvit, and check that its answers are the same.

    Args:
        model: a run's folder, a checkpoint, or any file that load_model reads.
        out: a new or empty folder.
        format: onnx (ONNX), torch (torch.export), hub (Hugging Face hub) or siglip2 (transformers'
            Siglip2VisionModel).
        resolution: with patch_size: a graph only for square images of this side, in batches of any size.
        patch_size: patch size of that graph.
        square: for that graph, reader.py squashes whole images to squares instead of showing their central
            square.
        pixels: type of the pixels that that graph takes.
        verify: run the export on random images and refuse a difference above 1e-4.
        loss: the loss for which reader.py computes scores; by default that of --results, of the run, or
            softmax.
        classes: JSON file with a list of the classes' names; by default those of --results.
        results: folder of an evaluation of this model, for the model card.
        license: licence of the weights, as the hub names it, such as apache-2.0.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    format: str = "onnx"
    resolution: int | None = None
    patch_size: int | None = None
    square: bool = False
    pixels: Literal["float32", "uint8"] = "float32"
    verify: bool = True
    loss: Literal["softmax", "sigmoid"] | None = None
    classes: Path | None = None
    results: Path | None = None
    license: str | None = None


def main(arguments: Sequence[str]) -> None:
    """Export."""
    options = read_options(Export, "packvit export", arguments)
    check_values(options)
    with whole_folder(options.out) as folder:
        model = load_model(options.model)
        results = read_results(options.results, model) if options.results else None
        measure = write(options, model, results, folder)
        found = measure() if options.verify else None
        if found is not None:
            check_difference(found, f"--format {options.format}")
        size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"Wrote {options.out} ({size / 1e6:.1f} MB)")
    if found is not None:
        print(f"Largest difference from the packed model: {found:.1e}")
    if options.format == "siglip2" and model.head is not None:
        print(
            f"Siglip2VisionModel has no classifier: the head of {model.config.num_classes} classes stays out"
        )


def check_values(options: Export) -> None:
    """Refuse formats that do not exist and options that do not belong together.

    Raises:
        ValueError: names the flag.
    """
    kind, is_graph = options.format, options.format in FILES
    if kind not in FORMATS:
        raise ValueError(f"--format {kind}: it is one of {', '.join(FORMATS)}")
    is_fixed = options.resolution is not None and options.patch_size is not None
    if not is_fixed and (options.resolution is not None or options.patch_size is not None):
        raise ValueError("--resolution and --patch-size go together: they make a graph of one shape")
    if is_fixed and not is_graph:
        raise ValueError(
            f"--format {kind} has no graph of one shape: leave out --resolution and --patch-size"
        )
    if not is_fixed and (options.square or options.pixels != "float32"):
        raise ValueError(
            "--square and --pixels belong to a graph of one shape: give --resolution and --patch-size"
        )
    if not is_graph and (options.classes or options.loss):
        raise ValueError(f"--format {kind} does not support --classes and --loss")
    if options.license and kind != "hub":
        raise ValueError(f"--format {kind} has no model card for --license: use --format hub")
    if options.results and kind == "siglip2":
        raise ValueError("--format siglip2 does not support --results")


def write(
    options: Export, model: PackedViT, results: ResultsFile | None, folder: Path
) -> Callable[[], float]:
    """Write the format's files to `folder`; returns a function that measures their difference from the
    model."""
    kind = options.format
    if kind == "hub":
        name = options.out.absolute().name
        write_hub(model, folder, name, results, options.license)
        return lambda: hub_difference(model, folder)
    if kind == "siglip2":
        write_siglip2(model, folder)
        return lambda: siglip2_difference(model, folder)
    kind = "torch" if kind == "torch" else "onnx"
    evaluated = results.model if results is not None and isinstance(results.model, dict) else {}
    loss = options.loss or evaluated.get("loss") or loss_kind(options.model) or "softmax"
    classes = read_classes(options.classes) if options.classes else results and results.classes
    answers = Answers(loss, classes)
    if options.resolution is not None and options.patch_size is not None:
        protocol = "square" if options.square else "crop:1"
        setting = Setting(options.patch_size, options.resolution, protocol=protocol)
        check_settings(model.config, [setting], torch.device("cpu"))
        write_fixed(model, folder, kind, answers, setting, options.pixels)
    else:
        write_packed(model, folder, kind, answers)
    return lambda: graph_difference(model, folder, kind)


def read_classes(path: Path) -> list[str]:
    """The names in a JSON file such as the classes.json of a set of shards.

    Raises:
        ValueError: it cannot be read or holds something else.
    """
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--classes {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"--classes {path} is not JSON: {error}") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"--classes {path} holds no list of names")
    return classes
