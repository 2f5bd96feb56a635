"""Whether an export gives the same answers as the model: its files are loaded and run on random images."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from packvit.common.optional import need
from packvit.data import pack_images
from packvit.evaluate.export.layers import plain_copy
from packvit.evaluate.export.reader import Reader
from packvit.evaluate.export.write import FILES, Format
from packvit.models import PackedViT

TOLERANCE = 1e-4
SIZES = ((48, 64), (64, 48), (33, 100), (57, 57), (20, 24))  # height and width, before they become patches

Outputs = dict[str, np.ndarray]


def check_difference(difference: float, what: str) -> None:
    """Refuse an export that differs from the model.

    Raises:
        ValueError: the difference is above TOLERANCE.
    """
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{what} differs from the packed model by {difference:.1e}, more than {TOLERANCE:.0e}: nothing "
            "was written"
        )


def graph_difference(model: PackedViT, folder: Path, kind: Format) -> float:
    """The largest difference of any output between the files in `folder` and the packed model in float32.

    It is absolute for outputs up to 1, and otherwise relative to the largest output of the model. Images of
    several sizes and patch sizes go through one call, and one of them through a separate call.
    """
    model, reader = plain_copy(model), Reader(folder)
    if kind == "onnx":
        need("onnxruntime", "export", "--verify needs onnxruntime")
    run = reader.run if kind == "onnx" else _runner(reader)
    if reader.about["graph"] == "fixed":
        p, (rows, cols) = reader.about["patch_size"], reader.about["grid"]
        images = random_images(((rows * p, cols * p),) * 3)
        calls = [(images, p, None), (images[:1], p, None)]
        return max(_difference(model, run, *call, fixed=True) for call in calls)
    stored = model.config.patch_buffer
    sides = (stored, max(1, stored // 2), max(1, 3 * stored // 4), math.ceil(1.25 * stored), 2 * stored)
    images = random_images()
    resolutions = [p * (2 + i) for i, p in enumerate(sides)]
    calls = [(images, sides, resolutions), (images[1:2], sides[1], resolutions[1])]
    return max(_difference(model, run, *call) for call in calls)


def random_images(sizes: Sequence[tuple[int, int]] = SIZES) -> list[np.ndarray]:
    """Noise, uint8 [height, width, 3] each: always the same."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def largest_difference(outputs: Outputs, expected: Outputs) -> float:
    """The largest difference between outputs with the same names: absolute up to 1, and otherwise relative to
    the largest expected one; infinite if an output is missing or not finite."""
    if outputs.keys() != expected.keys() or any(
        outputs[name].shape != values.shape or not np.isfinite(outputs[name] - values).all()
        for name, values in expected.items()
    ):
        return math.inf
    return max(
        float(np.abs(outputs[name] - values).max() / max(1.0, np.abs(values).max()))
        for name, values in expected.items()
    )


def expected_outputs(
    model: PackedViT, images: Sequence[np.ndarray], patch_size: Any, resolution: Any
) -> Outputs:
    """The packed model's outputs for uint8 images [H, W, 3]; settings as for `pack_images`."""
    with torch.inference_mode():
        outputs = model.outputs(pack_images(images, patch_size, resolution))
    logits = {} if model.head is None else {"logits": outputs.logits.float().numpy()}
    return {**logits, "features": outputs.features.float().numpy()}


def _difference(
    model: PackedViT,
    run: Callable[..., Outputs],
    images: Sequence[np.ndarray],
    patch_size: Any,
    resolution: Any,
    fixed: bool = False,
) -> float:
    settings = () if fixed else (patch_size, resolution)
    outputs = run([Image.fromarray(image) for image in images], *settings)
    return largest_difference(outputs, expected_outputs(model, images, patch_size, resolution))


def _runner(reader: Reader) -> Callable[..., Outputs]:
    """What `reader.run` is for model.onnx, for model.pt2."""
    program = torch.export.load(reader.folder / FILES["torch"]).module()

    def run(images: Sequence[Image.Image], *settings: Any) -> Outputs:
        inputs = {name: torch.from_numpy(values) for name, values in reader.inputs(images, *settings).items()}
        with torch.inference_mode():
            outputs = program(**inputs)
        return {name: o.numpy() for name, o in zip(reader.about["outputs"], outputs, strict=True)}

    return run
