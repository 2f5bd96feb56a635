"""Helpers that tests of several modules share: importlib mode has no module to import them from."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image

from packvit.data import write_digits, write_scenes
from packvit.packing import PackedImage

CutImage = Callable[..., PackedImage]
MadeOnce = Callable[[str, Callable[[Path], object]], Path]
Rendering = Callable[[], AbstractContextManager[None]]
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
COUNT, AVAILABLE = torch.cuda.device_count, torch.cuda.is_available


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hide all GPUs from a test, its fixtures and the processes that they start, unless it is marked cuda.

    What a CPU must give to the bit would otherwise be computed on a GPU, where there is one, in bf16.
    """
    if item.get_closest_marker("cuda") is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.cuda.device_count, torch.cuda.is_available = lambda: 0, lambda: False
        return
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if VISIBLE is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = VISIBLE
    torch.cuda.device_count, torch.cuda.is_available = COUNT, AVAILABLE


@pytest.fixture(scope="session")
def cut_image() -> CutImage:
    """cut_image(pixels, patch_size, keep=None, key="", **targets): uint8 [H, W, 3] to a PackedImage."""

    def cut(
        pixels: np.ndarray, patch_size: int, keep: np.ndarray | None = None, key: str = "", **targets
    ) -> PackedImage:
        rows, cols = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
        patches = rearrange(pixels, "(r p) (c q) ch -> (r c) (p q ch)", p=patch_size, q=patch_size)
        coords = np.stack(np.divmod(np.arange(rows * cols), cols), 1).astype(np.int32)
        if keep is not None:
            patches, coords = patches[keep], coords[keep]
        native = (pixels.shape[0], pixels.shape[1])
        cell = (patch_size, patch_size)
        patches = {cell: np.ascontiguousarray(patches)}
        return PackedImage(patches, coords, (rows, cols), cell, native, key, targets=targets)

    return cut


@pytest.fixture(scope="session", autouse=True)
def _own_index_cache(tmp_path_factory) -> Iterator[None]:
    """No test reads or writes the user's cache of shard indices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> MadeOnce:
    """made_once(name, make): a folder to read, which make(folder) has filled once for all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                begun = Path(tempfile.mkdtemp(prefix=name, dir=shared))
                make(begun)
                begun.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session", autouse=True)
def rendering() -> Iterator[Rendering]:
    """Within `with rendering():` figures are drawn; elsewhere they are built, and their PNG files are white.

    To draw takes more than half of the time of a small run, and few tests look at its pictures.
    """
    draw = Figure.savefig

    def save_white(figure: Figure, path: Any, **options) -> None:
        if not isinstance(path, Path):
            draw(figure, path, **options)
            return
        width, height = figure.get_size_inches() * options.get("dpi", figure.dpi)
        Image.new("L", (round(width), round(height)), "white").save(path)

    @contextmanager
    def real() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Figure, "savefig", draw)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_white)
        yield real


@pytest.fixture(scope="session")
def digits_set(tmp_path_factory) -> Path:
    """A small demo set: folders `train` (3 shards, 120 images) and `val` (1 shard, 30 images)."""
    out = tmp_path_factory.mktemp("digits")
    write_digits(out, 120, 30, seed=0, shard_size=40)
    return out


@pytest.fixture(scope="session")
def scenes_set(tmp_path_factory) -> Path:
    """Scenes with captions: folders `train` (2 shards, 60 images), `val` and `held_out`."""
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, 60, shard_size=30)
    return out


@pytest.fixture(scope="session")
def run_flags(digits_set) -> Callable[..., list[str]]:
    """run_flags(run_dir, **changes): arguments of a tiny run of the demo's recipe."""

    def flags(run_dir: Path, **changes) -> list[str]:
        values = {
            "run-dir": run_dir,
            "data.shards": digits_set / "train",
            "data.streams": 4,
            "data.workers": 1,
            "packing.seq-len": 64,
            "packing.sequences": 2,
            "packing.lookahead": 16,
            "model.width": 32,
            "model.depth": 2,
            "model.heads": 2,
            "train.steps": 6,
            "train.log-every": 1,
            "train.checkpoint-every": 3,
            "optim.warmup": 2,
        }
        values |= {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
        return ["digits", *(text for name, value in values.items() for text in (f"--{name}", str(value)))]

    return flags
