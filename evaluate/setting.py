"""A setting: how evaluation and prediction show images to a model."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from packvit.packing import View, fit_grid, largest_grid

PROTOCOLS = "native, square or crop:SHARE with a share in (0, 1], such as crop:0.875"
NAME = re.compile(
    r"(?P<kind>[rt])(?P<size>\d+)-p(?P<patch>\d+)(-s(?P<stride>\d+))?"
    r"(-(?P<protocol>square|crop(?P<share>[\d.]+)))?"
)


@dataclass(frozen=True, order=True)
class Setting:
    """A patch size, and how large and in which shape images are shown. Nothing is dropped.

    Args:
        patch_size: side in pixels.
        resolution: side in pixels of the square with the view's area; None if `tokens` decides.
        tokens: instead of a resolution: every image gets the largest grid of at most so many tokens.
        protocol: `native` shows the whole image at its aspect ratio; `square` the whole image, squashed to a
            square; `crop:0.875` the central square whose side is that share of the shorter side.
        stride: pixels from one patch to the next where patches overlap; None: the patch size, also where that
            is given.

    Raises:
        ValueError: names the field.
    """

    patch_size: int
    resolution: int | None = None
    tokens: int | None = None
    protocol: str = "native"
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size={self.patch_size} must be at least 1")
        if (self.resolution is None) == (self.tokens is None):
            raise ValueError("a setting has either a resolution or a number of tokens")
        for name, value in (("resolution", self.resolution), ("tokens", self.tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        crop_share(self.protocol)
        if self.stride is not None and not 1 <= self.stride <= self.patch_size:
            raise ValueError(f"stride={self.stride} must lie in 1..{self.patch_size}, the patch size")
        if self.stride == self.patch_size:
            object.__setattr__(self, "stride", None)

    @property
    def name(self) -> str:
        """Such as r224-p16, t256-p16-s8-square, r224-p16-crop0.875: in files, one for each setting."""
        size = f"r{self.resolution}" if self.tokens is None else f"t{self.tokens}"
        protocol = "" if self.protocol == "native" else "-" + self.protocol.replace(":", "")
        return f"{size}-{patch_name(self.patch_size, self.stride)}{protocol}"

    @property
    def side(self) -> float:
        """The resolution in pixels, or that of a square of `tokens` patches."""
        if self.tokens is None:
            return float(self.resolution or 0)
        step = self.stride or self.patch_size
        return step * math.sqrt(self.tokens) + (self.patch_size - step)

    def view(self, native: tuple[int, int]) -> View:
        """How an image of `native` (height, width) pixels is shown."""
        height, width = native
        box = 0, 0, height, width
        share = crop_share(self.protocol)
        if share:
            side = max(1, round(share * min(height, width)))
            box = (height - side) // 2, (width - side) // 2, side, side
        shape = box[2:] if self.protocol == "native" else (1, 1)
        p, stride = self.patch_size, self.stride
        if self.tokens:
            grid = largest_grid(*shape, self.tokens, p / (stride or p) - 1)
        else:
            grid = fit_grid(*shape, self.side, p, stride=stride)
        return View(grid, (p, p), math.prod(grid), box, stride=stride)


def patch_name(patch_size: int, stride: int | None) -> str:
    """Such as p16, or p16-s8 where patches overlap."""
    return f"p{patch_size}" if stride is None else f"p{patch_size}-s{stride}"


def grid_settings(
    patch_sizes: Sequence[int],
    resolutions: Sequence[int],
    strides: Sequence[int] = (),
    protocol: str = "native",
) -> list[Setting]:
    """Every patch size at every resolution and every stride that is no larger; without strides patches do not
    overlap.

    Raises:
        ValueError: a patch size is smaller than all strides.
    """
    settings = []
    for p in patch_sizes:
        fitting = [stride for stride in strides if stride <= p]
        if strides and not fitting:
            raise ValueError(
                f"patch size {p} is smaller than every stride, {' '.join(map(str, strides))}: use a smaller "
                "stride, or leave the patch size out"
            )
        pairs = product(fitting or (None,), resolutions)
        settings += [Setting(p, resolution, protocol=protocol, stride=stride) for stride, resolution in pairs]
    return settings


def parse_setting(name: str) -> Setting:
    """The setting of this name; the inverse of `Setting.name`.

    Raises:
        ValueError: it is not a setting's name.
    """
    found = NAME.fullmatch(name)
    if not found:
        raise ValueError(
            f"{name!r} is not a setting: names are such as r224-p16, t256-p16-square, r96-p8-s4-crop0.875"
        )
    protocol = f"crop:{found['share']}" if found["share"] else found["protocol"] or "native"
    size, patch_size = int(found["size"]), int(found["patch"])
    stride = int(found["stride"]) if found["stride"] else None
    if found["kind"] == "t":
        return Setting(patch_size, tokens=size, protocol=protocol, stride=stride)
    return Setting(patch_size, size, protocol=protocol, stride=stride)


def crop_share(protocol: str) -> float | None:
    """Side of the central crop over the image's shorter side; None for a protocol without a crop.

    Raises:
        ValueError: no such protocol.
    """
    if protocol in ("native", "square"):
        return None
    found = re.fullmatch(r"crop:(\d*\.?\d+)", protocol)
    if not found or not 0 < float(found[1]) <= 1:
        raise ValueError(f"protocol {protocol!r} is not one of {PROTOCOLS}")
    return float(found[1])
