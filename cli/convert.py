"""`packvit convert SOURCE TARGET`: from any weights that load_model reads to packvit's folder, or to a file
of big_vision or timm."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from packvit.cli.options import read_options
from packvit.common.files import check_writable
from packvit.models import export_model, load_model, save_model
from packvit.models.files.timm_call import timm_call
from packvit.models.position.embedding import PosResize
from packvit.models.resample import Operator

# Suffixes that people ask for, and what to do instead.
NO_PICKLE = "packvit writes no pickles: use .safetensors, which timm reads, or .npz, which big_vision reads"
FOREIGN = {
    ".onnx": "packvit export MODEL OUT --format onnx writes graphs",
    ".pt2": "packvit export MODEL OUT --format torch writes graphs",
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar", ".zip", ".h5"), NO_PICKLE),
}


@dataclass(frozen=True)
class ModelFields:
    """Fields of the model that SOURCE does not determine or that should be changed.

    Args:
        heads: number of attention heads; by default width / 64 if nothing determines it.
        mlp: activation.
        norm_eps: epsilon of every norm.
        pool: how tokens become features.
        pos_coords: coordinates of the position embedding.
        pos_resize: resampling of a table of positions.
        patch_operator: how the patch embedding is resized to other patch sizes. At the stored size all agree.
        image_mean: mean of each channel, for pixels in [0, 1].
        image_std: standard deviation of each channel, for pixels in [0, 1].
    """

    heads: int | None = None
    mlp: Literal["gelu_tanh", "gelu", "quick_gelu"] | None = None
    norm_eps: float | None = None
    pool: Literal["mean", "map", "cls", "cls_mean"] | None = None
    pos_coords: Literal["absolute", "fractional", "fractional_aspect"] | None = None
    pos_resize: PosResize | None = None
    patch_operator: Operator | None = None
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Convert:
    """Convert weights.

    Args:
        source: a run's folder, or any file that load_model reads.
        target: a folder for packvit, a file that ends in .npz for big_vision, or in .safetensors for timm.
        model: fields of the model.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    model: Annotated[ModelFields, tyro.conf.arg(name="")] = field(default_factory=ModelFields)


def main(arguments: Sequence[str]) -> None:
    """Convert."""
    options = read_options(Convert, "packvit convert", arguments)
    target = options.target
    is_file = target.suffix in (".npz", ".safetensors")
    # A folder may be called v1.5, but letters are a kind of file.
    unknown = target.suffix[1:].isalpha() or target.suffix in FOREIGN
    if unknown and not is_file:
        advice = FOREIGN.get(target.suffix, "packvit writes .npz, .safetensors, or a folder without a suffix")
        raise ValueError(f"{target} ends in {target.suffix}: {advice}")
    written = target if is_file else target / "model.safetensors"
    if written.exists():
        raise ValueError(f"{written} exists already: remove it or choose another target")
    check_writable(target.parent if is_file else target, "TARGET")
    values = {f.name: getattr(options.model, f.name) for f in fields(ModelFields)}
    model = load_model(options.source, **{name: v for name, v in values.items() if v is not None})
    if not is_file:
        print(save_model(model, target))
        return
    untold = export_model(model, target)
    print(target)
    if target.suffix == ".safetensors":
        print(f"timm loads it by {timm_call(model.config, str(target))}")
    if untold:
        told = ", ".join(f"{name}={value!r}" for name, value in untold.items())
        print(f"its keys do not determine {told}: pass them to load_model")
