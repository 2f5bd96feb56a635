"""Position embeddings for tokens with any place and extent, for a whole batch at once, along any number of
axes.

Every learned table is read through a matrix of resampling weights [T, cells] (see resample), one matrix
product for the batch: images of different grids need no loop, and the backward pass is a product as well
rather than a scatter. A token's position is its centre, always in units of table cells:

    absolute           place + (extent - 1) / 2
    fractional         (place + extent / 2) / size * grid - 1/2       along each axis
    fractional_aspect  the same over the longest axis' size           keeps the aspect ratio

so that sinusoids and rotations have the same frequencies whichever coordinate is chosen. NaViT 3.4, B.1;
NaViT writes row / rows, the patch's corner; its centre is the same place at every patch size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from operator import add, mul, truediv
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from packvit.models.fields import check_types, require
from packvit.models.resample import resample_weights

PosResize = Literal["bilinear_antialias", "bicubic_antialias", "bicubic"]
PosCoords = Literal["absolute", "fractional", "fractional_aspect"]
AXES = "tyx"  # names of the last axes, as tables have them: a picture has y and x


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """How tokens know where they are.

    Args:
        pos_embed: factorized (NaViT 3.4), grid_2d (one table resized per image), rope_2d or none.
        pos_table: kind of table, for factorized: learned, sinusoidal or fourier.
        pos_coords: absolute index, fractional (of the same axis' size) or fractional_aspect (of the longest).
        pos_combine: how factorized joins the axes: sum, product or stack; fourier is joint and ignores it.
        pos_grid: cells of the tables along each axis, (rows, cols); also the length that a fractional
            coordinate is scaled to.
        pos_resize: how grid_2d resamples its table.
        rope_coords: coordinates by which queries and keys are rotated in addition to the table of factorized
            or grid_2d, one of those of pos_coords; none does not rotate. rope_2d rotates by pos_coords.
            MoonViT (arXiv 2504.07491) has a bicubic grid_2d, and absolute with a rope_theta of 10000.
        rope_theta: base of the frequencies of rope_2d and rope_coords.
    """

    pos_embed: Literal["factorized", "grid_2d", "rope_2d", "none"] = "factorized"
    pos_table: Literal["learned", "sinusoidal", "fourier"] = "learned"
    pos_coords: PosCoords = "fractional"
    pos_combine: Literal["sum", "product", "stack"] = "sum"
    pos_grid: tuple[int, ...] = (16, 16)
    pos_resize: PosResize = "bilinear_antialias"
    rope_coords: Literal["none", PosCoords] = "none"
    rope_theta: float = 100.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self, min(self.pos_grid, default=0) >= 1, f"pos_grid={self.pos_grid} must be at least (1, 1)")
        alone = self.rope_coords != "none" and not self.adds_positions
        need = "needs pos_embed='factorized' or 'grid_2d'; 'rope_2d' rotates by pos_coords"
        require(self, not alone, f"rope_coords={self.rope_coords!r} {need}")
        require(self, self.rope_theta > 0, f"rope_theta={self.rope_theta} must be positive")

    @property
    def adds_positions(self) -> bool:
        """Whether a PosEmbed is added to tokens."""
        match self.pos_embed:
            case "factorized" | "grid_2d":
                return True
            case "rope_2d" | "none":
                return False
            case _ as unknown:
                assert_never(unknown)

    @property
    def rotary_coords(self) -> PosCoords | None:
        """Coordinates by which queries and keys are rotated, with or without a PosEmbed; or None."""
        if self.pos_embed == "rope_2d":
            return self.pos_coords
        return None if self.rope_coords == "none" else self.rope_coords

    def check_widths(self, width: int, head_dim: int) -> None:
        """Refuse a width that the embedding cannot be divided into.

        Raises:
            ValueError: names the field and what it needs.
        """
        axes = len(self.pos_grid)
        if self.rotary_coords:
            which = f"rope_coords={self.rope_coords!r}" if self.adds_positions else "pos_embed='rope_2d'"
            need = f"{which} needs a multiple of {2 * axes} as width / heads, got {head_dim}"
            require(self, head_dim % (2 * axes) == 0, need)
        if self.pos_embed != "factorized":
            return
        if self.pos_combine == "stack":
            need = "an even width" if axes == 2 else f"a multiple of {axes} as width"
            require(self, width % axes == 0, f"pos_combine='stack' needs {need}, got {width}")
        if self.pos_table != "learned":
            need = f"pos_table={self.pos_table!r} needs a multiple of {2 * axes} as width, got {width}"
            require(self, width % (2 * axes) == 0, need)
        if self.pos_table == "sinusoidal" and axes > 2:
            require(self, self.pos_combine == "stack", "pos_table='sinusoidal' needs stack beyond two axes")

    def check_overlap(self, what: str) -> None:
        """Refuse overlapping patches if positions count patches, because these would lie between the counts.

        Args:
            what: the option that asks for overlapping patches, for the message.

        Raises:
            ValueError: names `what` and the field.
        """
        used = [] if self.pos_embed == "none" else [("pos_coords", self.pos_coords)]
        for field, kind in [*used, ("rope_coords", self.rope_coords)]:
            if kind == "absolute":
                raise ValueError(
                    f"{what}: overlapping patches have no absolute index: it needs model.{field}=fractional "
                    "or fractional_aspect"
                )


class Places(NamedTuple):
    """Where tokens are, in cells along A axes; integers [T, A] each.

    coords: the first cell of each token.
    extents: cells that each token covers, at least 1.
    sizes: cells of each token's image, at least 1.
    """

    coords: Tensor
    extents: Tensor
    sizes: Tensor


def centres(places: Places, kind: PosCoords, grid: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Centres of tokens in units of table cells, 0 = centre of the first cell: [T, A].

    Args:
        kind: absolute, fractional or fractional_aspect.
        grid: cells of the table along each axis.
        dtype: of the result.
    """
    centre = places.coords.to(dtype) + 0.5 * places.extents.to(dtype)
    sizes = places.sizes.to(dtype)
    match kind:
        case "absolute":
            return centre - 0.5
        case "fractional":
            return _by_axis(centre / sizes, grid, mul) - 0.5
        case "fractional_aspect":
            return _by_axis(centre / sizes.amax(1, keepdim=True), grid, mul) - 0.5
        case _ as unknown:
            assert_never(unknown)


def _by_axis(x: Tensor, grid: tuple[int, ...], function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`function` of each axis of x [T, A] and its cells: plain numbers, as a tensor of them would have to be
    copied to the device."""
    return torch.stack([function(column, n) for column, n in zip(x.unbind(1), grid, strict=True)], 1)


class PosEmbed(nn.Module):
    """An additive position embedding, factorized (NaViT 3.4) or one table resized per image (FlexiViT 3.4).

    Beyond the end of a learned table, which absolute coordinates can reach, its last entry is repeated.

    Args:
        config: the kind of embedding; it has one axis for each entry of `pos_grid`.
        width: D.
    """

    def __init__(self, config: PositionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        grid = config.pos_grid
        self.axes = AXES[-len(grid) :]
        # Channels of one axis' part.
        self.part = width // len(grid) if config.pos_combine == "stack" else width
        if config.pos_embed == "grid_2d":
            self.table = nn.Parameter(torch.randn(*grid, width) * width**-0.5)  # big_vision's scale
            return
        match config.pos_table:
            case "learned":
                # A product of two entries gets the spread that ViT's tables have, 0.02, as a sum does.
                std = 0.02 ** (1 / len(grid)) if config.pos_combine == "product" else 0.02
                for axis, cells in zip(self.axes, grid, strict=True):
                    table = nn.Parameter(torch.randn(cells, self.part) * std)
                    self.register_parameter(f"table_{axis}", table)
            case "fourier":
                # Three standard deviations stay below the table's Nyquist frequency, grid / 2 cycles a side.
                spread = torch.tensor(grid, dtype=torch.float32)[:, None] / 8
                self.frequencies = nn.Parameter(torch.randn(len(grid), width // 2) * spread)
            case "sinusoidal":
                pass
            case _ as unknown:
                assert_never(unknown)

    def forward(self, places: Places) -> Tensor:
        """[T, D] for tokens at T places; in the dtype of the parameters but at least float32."""
        c = self.config
        dtype = next((t.dtype for t in chain(self.parameters(), self.buffers())), torch.float32)
        dtype = torch.promote_types(dtype, torch.float32)  # coordinates have more digits than bfloat16
        with torch.autocast(places.coords.device.type, enabled=False):
            position = centres(places, c.pos_coords, c.pos_grid, dtype)  # [T, A]
            if c.pos_embed == "grid_2d":
                return self._grid(places, position)
            if c.pos_table == "fourier":
                turns = _by_axis(position + 0.5, c.pos_grid, truediv) @ self.frequencies.to(dtype)
                angle = 2 * math.pi * turns  # [T, D / 2]
                return torch.cat([angle.sin(), angle.cos()], 1)
            parts = self._factors(position)
            match c.pos_combine:
                case "sum":
                    return reduce(add, parts)
                case "product":
                    return reduce(mul, parts)
                case "stack":
                    return torch.cat(parts[::-1], 1)  # x first, as big_vision's sincos2d
                case _ as unknown:
                    assert_never(unknown)

    def _factors(self, position: Tensor) -> list[Tensor]:
        """phi of each axis, such as phi_y(row) and phi_x(col), each [T, D], or [T, D / A] for stack."""
        c = self.config
        columns = position.unbind(1)
        if c.pos_table == "learned":
            tables: list[Tensor] = [getattr(self, f"table_{axis}") for axis in self.axes]
            weights = [
                resample_weights(x, 1.0, len(t), "bilinear") for x, t in zip(columns, tables, strict=True)
            ]
            return [w @ table.to(w) for w, table in zip(weights, tables, strict=True)]
        parts = [sinusoid(x, self.part) for x in columns]
        if c.pos_combine != "stack":
            # A sum of one phi on both axes could not tell (row, col) from (col, row): x runs backwards.
            parts[-1] = parts[-1].flip(1)
        return parts

    def _grid(self, places: Places, position: Tensor) -> Tensor:
        """The table resized to each token's grid and read at its centre."""
        c = self.config
        # How far apart tokens of this extent are, in table cells.
        after = places._replace(coords=places.coords + places.extents)
        step = centres(after, c.pos_coords, c.pos_grid, position.dtype) - position  # [T, A]
        if c.pos_coords == "absolute":
            position = _by_axis(position, c.pos_grid, lambda x, cells: x.clamp(max=cells - 1))
        weights = position.new_ones(position.shape[0], 1)
        for axis, cells in enumerate(c.pos_grid):
            along = resample_weights(position[:, axis], step[:, axis], cells, c.pos_resize)  # [T, cells]
            weights = (weights[:, :, None] * along[:, None, :]).flatten(1)
        return weights @ self.table.flatten(0, -2).to(position.dtype)


def sinusoid(position: Tensor, width: int) -> Tensor:
    """[T] -> [T, width]: sines, then cosines, at width / 2 frequencies from 1 to 1 / 10000 (MoCo v3, 5).

    Stacked for both axes and with absolute coordinates this is big_vision's sincos2d.
    """
    count = width // 2
    i = torch.arange(count, dtype=position.dtype, device=position.device)
    angle = position[:, None] * 10000.0 ** (-i / max(1, count - 1))
    return torch.cat([angle.sin(), angle.cos()], 1)


def rope_tables(position: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, head_dim / 2] of axial rotary embedding: an equal share of the angles follows
    each axis (RoPE-Axial, arXiv 2403.13298 3.2). Position [T, A]; zero rotates nothing."""
    axes = position.shape[1]
    i = torch.arange(head_dim // (2 * axes), dtype=position.dtype, device=position.device)
    angle = (position[:, :, None] * theta ** (-2 * axes * i / head_dim)).flatten(1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys [T, heads, head_dim] by tables [T, head_dim / 2]; keeps the input's dtype."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)
