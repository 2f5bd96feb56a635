"""`packvit inspect MODEL ...`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import tyro

from packvit.cli.options import read_options
from packvit.common.device import make_autocast
from packvit.common.display import Display
from packvit.common.files import check_writable
from packvit.common.ranks import Ranks, find_ranks, join_ranks
from packvit.data import ClassTarget, FetchConfig
from packvit.evaluate import LossKind, Setting, check_classes, check_settings, loss_kind
from packvit.evaluate.inspection.cka import LEAST_ROWS
from packvit.evaluate.inspection.images import InspectedImages
from packvit.evaluate.inspection.inspection import Inspection
from packvit.evaluate.inspection.report import show_inspection, write_inspection
from packvit.models import hash_model, load_model


@dataclass(frozen=True)
class Inspect:
    """Compare how one model processes the same images at different patch sizes and resolutions.

    Args:
        model: a run's folder, a checkpoint, or any file that load_model reads.
        shards: webdataset shards with labels: files, patterns or folders.
        resolutions: sides in pixels of the square with a view's area.
        patch_sizes: sides of a patch in pixels; every pair with a resolution is a setting.
        images: maximum number of images, drawn from the whole set.
        minibatch: minimum number of images of which CKA compares all pairs.
        neighbours: number of neighbours of k-NN.
        pictures: number of images whose attention and token similarity are drawn.
        loss: the loss that the model was trained with, which determines how logits become probabilities; by
            default that of the run's configuration, or softmax.
        out: folder for inspect.json and the pictures; by default MODEL/inspect. Earlier files are replaced.
        precision: precision of matrix products; auto is bf16 on CUDA and fp32 on a CPU.
        device: auto uses a GPU if there is one.
        label_field: field of every sample's label, such as cls or json:label.
        fetch: how remote and gzipped shards are fetched.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    shards: tuple[str, ...]
    resolutions: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--resolution"])]
    patch_sizes: tuple[int, ...]
    images: int = 256
    minibatch: int = 64
    neighbours: int = 20
    pictures: int = 4
    loss: LossKind | None = None
    out: Path | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    label_field: str = "cls"
    fetch: FetchConfig = field(default_factory=FetchConfig)


def main(arguments: Sequence[str]) -> None:
    """Inspect."""
    options = read_options(Inspect, "packvit inspect", arguments)
    folder = options.out or (options.model if options.model.is_dir() else options.model.parent) / "inspect"
    check_writable(folder)
    ranks = find_ranks(options.device)
    check_values(options, ranks)
    inspection = Inspection(
        [Setting(p, r) for r, p in product(options.resolutions, options.patch_sizes)],
        options.minibatch,
        options.neighbours,
        options.pictures,
        options.loss or loss_kind(options.model) or "softmax",
        make_autocast(options.precision, ranks.device),
    )
    model = load_model(options.model)
    check_settings(model.config, inspection.settings, ranks.device)
    target = ClassTarget(options.label_field, classes=model.config.num_classes or None)
    images = InspectedImages(options.shards, options.images, target, options.fetch)
    if model.config.num_classes:
        check_classes(images.set, model.config.num_classes, str(options.model))
    join_ranks(ranks)
    model = model.to(ranks.device)
    display = Display()
    results = inspection.run(model, images, display)
    looked = inspection.look(model, images)
    results["model"] = {"path": str(options.model), "hash": hash_model(model)}
    results["pictures"] = [image.key for image in looked]
    write_inspection(results, looked, folder, display)
    show_inspection(results, display)
    display.say(f"Wrote {folder / 'inspect.json'}")


def check_values(options: Inspect, ranks: Ranks) -> None:
    """Refuse options that allow no inspection, before anything is read.

    Raises:
        ValueError: names the flag.
    """
    if ranks.world_size > 1:
        raise ValueError("packvit inspect runs in one process: start it without torchrun")
    for name in ("resolutions", "patch_sizes", "shards"):
        if not getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} needs at least one value")
    if options.images < LEAST_ROWS:
        raise ValueError(f"--images {options.images}: the unbiased HSIC of CKA needs at least {LEAST_ROWS}")
