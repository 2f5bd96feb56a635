"""Read image files for an exported packvit model and run it. Needs numpy and pillow, and onnxruntime to run.

    python reader.py image.jpg ... --resolution 224 --patch-size 16
    python reader.py image.jpg ... --tokens 256

One JSON object an image: {"image", "labels", "scores"}, or {"image", "features"} of a model without classes.
From Python, with any mixture of images, patch sizes and resolutions in one call:

    reader = Reader("the folder of model.onnx")
    reader.run([open_image("a.jpg"), open_image("b.jpg")], patch_size=[16, 8], resolution=224)["logits"]

The graph knows one patch size, the side P of the stored embedding w. A patch x of another side p is brought
to it by the model's own resize matrix K [p, P]: <x, K w K^T> = <K^T x K, w>.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF")
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = (  # of orientations 0 to 8
    *(None, None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180),
    *(Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270),
    *(Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90),
)
NEIGHBOURS = 0.97  # correlation of neighbouring pixels that the operator `natural` assumes


class Reader:
    """The inputs and outputs of one exported model.

    Args:
        folder: with preprocess.json and, to run it, model.onnx.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about: dict[str, Any] = json.loads((self.folder / "preprocess.json").read_text())
        self.session: Any = None

    def inputs(
        self,
        images: Sequence[Image.Image],
        patch_size: int | Sequence[int] | None = None,
        resolution: float | Sequence[float] | None = None,
        tokens: int | Sequence[int] | None = None,
        protocol: str = "native",
    ) -> dict[str, np.ndarray]:
        """What the graph takes, by name; preprocess.json says what each array is.

        Args:
            images: upright and RGB, as `open_image` gives them.
            patch_size: in pixels, one for all images or one for each; by default the stored one.
            resolution, tokens: likewise, the side of the square with the same area, or the largest number of
                patches; with neither an image keeps its own size. A graph of one shape takes none of these.
            protocol: native (whole images at their aspect ratio), square (squashed) or crop:SHARE (the
                central square with that share of the shorter side).

        Raises:
            ValueError: no images, or settings that cannot be.
        """
        count, about = len(images), self.about
        values = [_one_each(value, count) for value in (patch_size, resolution, tokens)]
        if not images:
            raise ValueError("there are no images to read")
        if about["graph"] == "fixed":
            if any(value is not None for one in values for value in one):
                raise ValueError("this graph has one shape: its patch size and resolution cannot be chosen")
            rows, cols = about["grid"]
            size = about["patch_size"] * cols, about["patch_size"] * rows
            shown = [i.resize(size, Image.Resampling.BICUBIC, _box(i, about["protocol"])) for i in images]
            pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in shown])
            return {"images": pixels.astype(about["pixels"])}
        sides = [about["patch_buffer"] if p is None else p for p in values[0]]
        settings = zip(images, sides, values[1], values[2], strict=True)
        grids = [grid_of(image, p, r, n, protocol) for image, p, r, n in settings]
        lengths = [rows * cols for rows, cols in grids]
        coords = [np.stack(np.divmod(np.arange(rows * cols), cols), 1) for rows, cols in grids]
        cut = [self._patches(*one, protocol) for one in zip(images, sides, grids, strict=True)]
        return {
            "patches": np.concatenate(cut),
            "coords": np.concatenate(coords).astype(np.int64),
            "grids": np.array(grids, np.int64),
            "segment": np.repeat(np.arange(count, dtype=np.int64), lengths),
        }

    def _patches(self, image: Image.Image, p: int, grid: tuple[int, int], protocol: str) -> np.ndarray:
        """float32 [rows * cols, P * P * 3]: cut, normalised, and brought to the side P."""
        rows, cols = grid
        box = _box(image, protocol)
        pixels = np.asarray(image.resize((cols * p, rows * p), Image.Resampling.BICUBIC, box), np.float32)
        mean, std = (np.array(self.about["preprocessing"][name]) for name in ("mean", "std"))
        pixels = pixels * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)
        x = pixels.reshape(rows, p, cols, p, 3).swapaxes(1, 2).reshape(rows * cols, p, p * 3)
        stored = self.about["patch_buffer"]
        if p != stored:
            k = pi_matrix(self.about["patch_operator"], stored, p).T.astype(np.float32)  # [P, p]
            x = k @ x  # [n, P, p * 3]
            x = k @ x.reshape(-1, p, 3)  # [n * P, P, 3]
        return np.ascontiguousarray(x.reshape(rows * cols, -1))

    def run(self, images: Sequence[Image.Image], *args: Any, **settings: Any) -> dict[str, np.ndarray]:
        """The graph's outputs by name: features [N, D] and, of a model with classes, logits [N, C].

        Args:
            args, settings: of `inputs`.
        """
        if self.session is None:
            try:
                import onnxruntime
            except ImportError:
                raise ImportError("model.onnx is run by onnxruntime: pip install onnxruntime") from None
            path = str(self.folder / "model.onnx")
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        inputs = self.inputs(images, *args, **settings)
        taken = {i.name: inputs[i.name] for i in self.session.get_inputs()}
        return dict(zip(self.about["outputs"], self.session.run(None, taken), strict=True))

    def lines(self, names: Sequence[str], outputs: dict[str, np.ndarray], top: int) -> Iterator[dict]:
        """An object for each image, with its `top` best classes."""
        if "logits" not in outputs:
            for name, features in zip(names, outputs["features"], strict=True):
                yield {"image": name, "features": features.tolist()}
            return
        for name, logits in zip(names, outputs["logits"].astype(np.float64), strict=True):
            softmax = self.about["loss"] == "softmax"
            total = np.logaddexp.reduce(logits) if softmax else np.logaddexp(0, logits)
            scores = np.exp(logits - total)  # of softmax or of independent sigmoids
            best = np.argsort(-logits, kind="stable")[:top]
            classes = self.about["classes"]
            labels = [classes[i] if classes else int(i) for i in best]
            yield {"image": name, "labels": labels, "scores": scores[best].tolist()}


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """An image file as people see it: RGB, upright. 16-bit grey keeps its high byte, alpha is dropped.

    Raises:
        OSError: it cannot be decoded.
    """
    with Image.open(file, formats=FORMATS) as image:
        image.load()
        try:
            orientation = image.getexif().get(ORIENTATION) if "exif" in image.info else 1
        except Exception:
            orientation = 1  # damaged metadata: the pixels may be fine
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("RGB")
        turn = UPRIGHT[orientation] if isinstance(orientation, int) and 2 <= orientation <= 8 else None
        return image if turn is None else image.transpose(turn)


def grid_of(
    image: Image.Image, patch_size: int, resolution: float | None, tokens: int | None, protocol: str
) -> tuple[int, int]:
    """(rows, cols) of an image's patches; arguments as for `Reader.inputs`.

    Raises:
        ValueError: a setting that cannot be.
    """
    for name, value in (("patch size", patch_size), ("resolution", resolution), ("number of tokens", tokens)):
        if value is not None and not value >= 1:
            raise ValueError(f"a {name} of {value} is below 1")
    left, top, right, bottom = _box(image, protocol)
    height, width = bottom - top, right - left
    shape = (height, width) if protocol == "native" else (1.0, 1.0)
    if tokens is None:
        return fit_grid(*shape, resolution or math.sqrt(height * width), patch_size)
    if resolution is not None:
        raise ValueError("a resolution and a number of tokens exclude each other")
    return largest_grid(*shape, tokens)


def fit_grid(height: float, width: float, resolution: float, patch_size: int) -> tuple[int, int]:
    """Rows and columns, each at least 1, nearest to the area `resolution`**2 at the image's aspect ratio."""
    scale = resolution / math.sqrt(height * width) / patch_size
    # A side shorter than a patch becomes one patch, and the other side has the whole area.
    area = (resolution / patch_size) ** 2
    rows = height * scale if width * scale >= 1 else area
    cols = width * scale if height * scale >= 1 else area
    return max(1, round(rows)), max(1, round(cols))


def largest_grid(height: float, width: float, max_tokens: int) -> tuple[int, int]:
    """The largest grid of at most `max_tokens` cells that `fit_grid` gives at any side, by bisection."""
    low, high = 0.0, 2 * math.sqrt(max_tokens) + 2
    while high - low > 1e-6:
        middle = (low + high) / 2
        if math.prod(fit_grid(height, width, middle, 1)) <= max_tokens:
            low = middle
        else:
            high = middle
    return fit_grid(height, width, low, 1) if low > 0 else (1, 1)


@lru_cache(maxsize=512)
def pi_matrix(operator: str, stored: int, size: int) -> np.ndarray:
    """K [size, stored] float64 of a resize operator; FlexiViT 3.4."""
    kernel = "bilinear" if operator == "natural" else operator.removeprefix("plain_")
    b = resize_matrix(stored, size, kernel)
    if operator.startswith("plain_"):
        return b
    if operator == "natural":
        distance = np.abs(np.subtract.outer(np.arange(stored), np.arange(stored)))
        l_t = np.linalg.cholesky(NEIGHBOURS**distance).T
        return _inverse(l_t @ b.T) @ l_t
    return _inverse(b.T)


def resize_matrix(size_in: int, size_out: int, kernel: str) -> np.ndarray:
    """B [size_out, size_in] float64: B @ x resizes a line of pixels; bilinear, or with antialias bilinear or
    bicubic (a = -0.5)."""
    step, cells = size_in / size_out, np.arange(size_in)
    position = (np.arange(size_out) + 0.5) * step - 0.5
    if kernel == "bilinear":
        return (1 - np.abs(cells - position.clip(0, size_in - 1)[:, None])).clip(0)
    x = np.abs(cells - position[:, None]) / max(1.0, step)
    weights = (1 - x).clip(0)
    if kernel == "bicubic_antialias":
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(matrix, max(matrix.shape) * np.finfo(np.float64).eps)


def _box(image: Image.Image, protocol: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is shown."""
    if protocol in ("native", "square"):
        return 0, 0, image.width, image.height
    name, _, share = protocol.partition(":")
    if name != "crop" or not re.fullmatch(r"\d*\.?\d+", share) or not 0 < float(share) <= 1:
        raise ValueError(f"protocol {protocol!r} is not one of native, square, crop:SHARE (0 < SHARE <= 1)")
    side = max(1, round(float(share) * min(image.size)))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return left, top, left + side, top + side


def _one_each(value: Any, count: int) -> list:
    values = [value] * count if value is None or np.isscalar(value) else list(value)
    if len(values) != count:
        raise ValueError(f"{len(values)} values for {count} images")
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status, 1 if an image could not be read."""
    parser = argparse.ArgumentParser(description="Classify image files with an exported packvit model.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model", default=Path(__file__).parent, help="folder of model.onnx")
    parser.add_argument("--patch-size", type=int, nargs="+", help="one for all images or one for each")
    parser.add_argument("--resolution", type=float, nargs="+", help="one for all images or one for each")
    parser.add_argument("--tokens", type=int, nargs="+", help="at most so many an image; likewise")
    parser.add_argument("--protocol", default="native", help="native, square or crop:SHARE")
    parser.add_argument("--batch", type=int, default=1, help="images in a call; attention is tokens x tokens")
    parser.add_argument("--top", type=int, default=5, help="classes to name")
    options = parser.parse_args(arguments)
    given = (options.patch_size, options.resolution, options.tokens)
    broken = False
    try:
        reader = Reader(options.model)
        values = [_one_each(v[0] if v and len(v) == 1 else v, len(options.images)) for v in given]
        rows = list(zip(options.images, *values, strict=True))
        for start in range(0, len(rows), max(1, options.batch)):
            readable = []
            for name, *setting in rows[start : start + max(1, options.batch)]:
                try:
                    readable.append((name, open_image(name), *setting))
                except Exception as error:  # decoders of broken files raise nearly anything
                    print(json.dumps({"image": name, "error": str(error)}))
                    broken = True
            if readable:
                names, images, *settings = zip(*readable, strict=True)
                outputs = reader.run(images, *settings, protocol=options.protocol)
                print(*map(json.dumps, reader.lines(names, outputs, options.top)), sep="\n")
    except (OSError, ValueError, ImportError) as error:
        print(f"reader.py: error: {error}", file=sys.stderr)
        return 2
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
