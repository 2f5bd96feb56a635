"""Graphs to files: model.onnx or model.pt2, preprocess.json, and the reader that feeds them."""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from packvit.common.files import check_writable, write_whole
from packvit.common.optional import need
from packvit.evaluate.export import reader
from packvit.evaluate.export.fixed import FixedGraph
from packvit.evaluate.export.graph import PackedGraph
from packvit.evaluate.setting import Setting
from packvit.models import PackedViT, ViTConfig

Format = Literal["onnx", "torch"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
FORMAT_VERSION = 1
OPSET = 18
LARGEST_FILE = 1 << 30  # bytes of weights; protobuf ends at 2 GB, so that more go to a file of their own
INPUTS = {
    "patches": "float32 [T, P*P*3]: normalised, brought to the stored patch size; (row, col, channel)",
    "coords": "int64 [T, 2]: (row, col) of each token in its image's grid",
    "grids": "int64 [N, 2]: rows and cols of each image",
    "segment": "int64 [T]: image of each token, 0..N-1; -1 is padding",
}


@dataclass(frozen=True)
class Answers:
    """The meaning of the model's outputs.

    Args:
        loss: the loss that the model was trained with: softmax (one class an image) or sigmoid (any number).
        classes: names of the classes, or None.
    """

    loss: Literal["softmax", "sigmoid"] = "softmax"
    classes: Sequence[str] | None = None

    def check(self, config: ViTConfig) -> None:
        """Refuse names that do not fit the model.

        Raises:
            ValueError: there is another number of names.
        """
        if self.classes is not None and len(self.classes) != config.num_classes:
            raise ValueError(f"{len(self.classes)} classes are named, the model has {config.num_classes}")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` at the end; after an error nothing is left.

    Raises:
        ValueError: `out` cannot be written to, or holds files.
    """
    check_writable(out, "OUT")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"OUT {out} has files in it: remove them or choose another folder")
    place = out.absolute()
    unfinished = place.with_name(f".{place.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_packed(model: PackedViT, folder: Path, kind: Format, answers: Answers) -> None:
    """The graph of packed tokens and its reader, to a folder that exists.

    Raises:
        ImportError: a package is missing.
        ValueError: `answers` do not fit the model.
    """
    c = model.config
    lengths = torch.tensor([6, 2])  # of two images; any others will do
    inputs = {
        "patches": torch.zeros(8, c.patch_buffer**2 * 3),
        "coords": torch.tensor([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 0), (1, 0)]),
        "grids": torch.tensor([(2, 3), (2, 1)]),
        "segment": torch.arange(2).repeat_interleave(lengths),
    }
    sizes = {"patches": "tokens", "coords": "tokens", "grids": "images", "segment": "tokens"}
    about = {"graph": "packed", "patch_buffer": c.patch_buffer, "patch_operator": c.patch_operator}
    _write_about(folder, c, answers, {**about, "inputs": INPUTS})
    _write_graph(PackedGraph(model), inputs, sizes, folder, kind)


def write_fixed(
    model: PackedViT, folder: Path, kind: Format, answers: Answers, setting: Setting, pixels: str
) -> None:
    """The graph of one shape and its reader, to a folder that exists; raises like `write_packed`.

    Args:
        setting: square or a crop, so that all images get one shape.
        pixels: uint8 or float32, the type of the graph's input.
    """
    rows, cols = setting.view((1, 1)).grid
    p = setting.patch_size
    height, width = rows * p, cols * p
    about = {
        "graph": "fixed",
        "grid": [rows, cols],
        "patch_size": p,
        "protocol": setting.protocol,
        "pixels": pixels,
        "inputs": {"images": f"{pixels} [B, 3, {height}, {width}]: RGB from 0 to 255"},
    }
    _write_about(folder, model.config, answers, about)
    images = torch.zeros(2, 3, height, width, dtype=getattr(torch, pixels))
    _write_graph(FixedGraph(model, (rows, cols), p), {"images": images}, {"images": "batch"}, folder, kind)


def _write_about(folder: Path, config: ViTConfig, answers: Answers, about: dict[str, Any]) -> None:
    answers.check(config)
    outputs = {"logits": f"float32 [N, {config.num_classes}]"} if config.num_classes else {}
    preprocessing = {
        "resize": "bicubic_antialias",
        "decode": "whole",
        "mean": config.image_mean,
        "std": config.image_std,
    }
    about = {
        "format_version": FORMAT_VERSION,
        **about,
        "outputs": outputs | {"features": f"float32 [N, {config.feature_dim}]"},
        "preprocessing": preprocessing,
        "loss": answers.loss,
        "classes": answers.classes,
    }
    write_whole(folder / "preprocess.json", json.dumps(about, indent=1) + "\n")
    shutil.copyfile(reader.__file__, folder / "reader.py")


def _write_graph(
    graph: nn.Module, inputs: dict[str, Tensor], sizes: dict[str, str], folder: Path, kind: Format
) -> None:
    """Export a graph whose inputs each have a first axis of any length, named in `sizes`."""
    dims = {name: torch.export.Dim(name) for name in sizes.values()}
    shapes = {name: {0: dims[size]} for name, size in sizes.items()}
    path = folder / FILES[kind]
    if kind == "torch":
        program = torch.export.export(graph.eval(), (), inputs, dynamic_shapes=shapes)
        torch.export.save(program, path)
        return
    need("onnxscript", "export", "--format onnx needs onnx, onnxscript and onnxruntime")
    onnx = need("onnx", "export", "--format onnx needs onnx, onnxscript and onnxruntime")
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    with warnings.catch_warnings(), _without_hints():
        warnings.simplefilter("ignore")  # of how the exporter works inside
        torch.onnx.export(
            graph.eval(),
            kwargs=inputs,
            f=path,
            input_names=list(inputs),
            output_names=list(json.loads((folder / "preprocess.json").read_text())["outputs"]),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            external_data=size > LARGEST_FILE,
            dynamo=True,
            verbose=False,
        )
    onnx.checker.check_model(str(path), full_check=True)


@contextmanager
def _without_hints() -> Iterator[None]:
    """The exporter logs which optional packages it could also serve."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
