"""A setting: how evaluation and prediction show images to a model."""

import math
import re
from dataclasses import dataclass

from packvit.packing import View, fit_grid, largest_grid

PROTOCOLS = "native, square or crop:SHARE with a share in (0, 1], such as crop:0.875"
NAME = re.compile(
    r"(?P<kind>[rt])(?P<size>\d+)-p(?P<patch>\d+)(-(?P<protocol>square|crop(?P<share>[\d.]+)))?"
)


@dataclass(frozen=True, order=True)
class Setting:
    """A patch size, and how large and in which shape images are shown. Nothing is dropped.

    Args:
        patch_size: side in pixels.
        resolution: side in pixels of the square with the view's area; None where `tokens` decides.
        tokens: instead of a resolution: every image gets the largest grid of at most so many tokens.
        protocol: `native` shows the whole image at its aspect ratio; `square` the whole image, squashed to a
            square; `crop:0.875` the central square whose side is that share of the shorter side.

    Raises:
        ValueError: names the field.
    """

    patch_size: int
    resolution: int | None = None
    tokens: int | None = None
    protocol: str = "native"

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size={self.patch_size} must be at least 1")
        if (self.resolution is None) == (self.tokens is None):
            raise ValueError("a setting has either a resolution or a number of tokens")
        for name, value in (("resolution", self.resolution), ("tokens", self.tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        crop_share(self.protocol)

    @property
    def name(self) -> str:
        """Such as r224-p16, t256-p16-square, r224-p16-crop0.875: in files, one for each setting."""
        size = f"r{self.resolution}" if self.tokens is None else f"t{self.tokens}"
        protocol = "" if self.protocol == "native" else "-" + self.protocol.replace(":", "")
        return f"{size}-p{self.patch_size}{protocol}"

    @property
    def side(self) -> float:
        """The resolution in pixels, or that of a square of `tokens` patches."""
        return self.patch_size * math.sqrt(self.tokens) if self.tokens else float(self.resolution or 0)

    def view(self, native: tuple[int, int]) -> View:
        """How an image of `native` (height, width) pixels is shown."""
        height, width = native
        box = 0, 0, height, width
        share = crop_share(self.protocol)
        if share:
            side = max(1, round(share * min(height, width)))
            box = (height - side) // 2, (width - side) // 2, side, side
        shape = box[2:] if self.protocol == "native" else (1, 1)
        grid = (
            largest_grid(*shape, self.tokens) if self.tokens else fit_grid(*shape, self.side, self.patch_size)
        )
        return View(grid, (self.patch_size, self.patch_size), math.prod(grid), box)


def parse_setting(name: str) -> Setting:
    """The setting of this name; the inverse of `Setting.name`.

    Raises:
        ValueError: it is no setting's name.
    """
    found = NAME.fullmatch(name)
    if not found:
        raise ValueError(
            f"{name!r} is no setting: names are such as r224-p16, t256-p16-square, r96-p8-crop0.875"
        )
    protocol = f"crop:{found['share']}" if found["share"] else found["protocol"] or "native"
    size, patch_size = int(found["size"]), int(found["patch"])
    if found["kind"] == "t":
        return Setting(patch_size, tokens=size, protocol=protocol)
    return Setting(patch_size, size, protocol=protocol)


def crop_share(protocol: str) -> float | None:
    """Side of the central crop over the image's shorter side; None for a protocol without a crop.

    Raises:
        ValueError: no such protocol.
    """
    if protocol in ("native", "square"):
        return None
    found = re.fullmatch(r"crop:(\d*\.?\d+)", protocol)
    if not found or not 0 < float(found[1]) <= 1:
        raise ValueError(f"protocol {protocol!r} is none of {PROTOCOLS}")
    return float(found[1])
