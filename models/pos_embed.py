"""Position embeddings for views of any grid, for a whole batch at once.

Every learned table is read through a matrix of resampling weights [T, cells] (see resample), one matrix
product for the batch: images of different grids need no loop, and the backward pass is a product as well
rather than a scatter. A coordinate is always expressed in units of table cells:

    absolute           row
    fractional         (row + 1/2) / rows * grid - 1/2          the patch's centre, per side
    fractional_aspect  the same over max(rows, cols)            keeps the aspect ratio

so that sinusoids and rotations have the same frequencies whichever coordinate is chosen. NaViT 3.4, B.1;
NaViT writes row / rows, the patch's corner; its centre is the same place at every patch size.
"""

import math

import torch
from torch import Tensor, nn

from packvit.models.config import ViTConfig
from packvit.models.resample import resample_weights


def coordinates(
    coords: Tensor, sides: Tensor, kind: str, grid: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Patch coordinates in units of table cells.

    Args:
        coords: integer [T, 2], (row, col).
        sides: integer [T, 2], (rows, cols) of the image's grid, at least 1.
        kind: absolute, fractional or fractional_aspect.
        grid: (rows, cols) of the table.
        dtype: of the result.

    Returns:
        [T, 2].
    """
    position = coords.to(dtype)
    if kind == "absolute":
        return position
    sides = sides.to(dtype)
    if kind == "fractional_aspect":
        sides = sides.amax(1, keepdim=True)
    cells = torch.tensor(grid, dtype=dtype).to(coords.device, non_blocking=True)
    return (position + 0.5) / sides * cells - 0.5


class PosEmbed(nn.Module):
    """An additive position embedding, factorized (NaViT 3.4) or one table resized per image (FlexiViT 3.4).

    Beyond the end of a learned table, as absolute coordinates may be, its last entry goes on.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        rows, cols = config.pos_grid
        width = config.width
        if config.pos_embed == "grid_2d":
            self.table = nn.Parameter(torch.randn(rows, cols, width) * width**-0.5)  # big_vision's scale
        elif config.pos_table == "learned":
            axis = width // 2 if config.pos_combine == "stack" else width
            # A product of two entries gets the spread that ViT's tables have, 0.02, as a sum does.
            std = 0.02**0.5 if config.pos_combine == "product" else 0.02
            self.table_y = nn.Parameter(torch.randn(rows, axis) * std)
            self.table_x = nn.Parameter(torch.randn(cols, axis) * std)
        elif config.pos_table == "fourier":
            # Three standard deviations stay below the table's Nyquist frequency, grid / 2 cycles a side.
            spread = torch.tensor(config.pos_grid, dtype=torch.float32)[:, None] / 8
            self.frequencies = nn.Parameter(torch.randn(2, width // 2) * spread)

    def forward(self, coords: Tensor, sides: Tensor) -> Tensor:
        """[T, D] for integer coords, sides [T, 2]; in the dtype of the parameters but at least float32."""
        dtype = next((p.dtype for p in self.parameters()), torch.float32)
        dtype = torch.promote_types(dtype, torch.float32)  # coordinates have more digits than bfloat16
        with torch.autocast(coords.device.type, enabled=False):
            if self.config.pos_embed == "grid_2d":
                return self._grid(coords, sides, dtype)
            c = self.config
            position = coordinates(coords, sides, c.pos_coords, c.pos_grid, dtype)  # [T, 2]
            if c.pos_table == "fourier":
                cells = torch.tensor(c.pos_grid, dtype=dtype).to(coords.device, non_blocking=True)
                angle = 2 * math.pi * ((position + 0.5) / cells @ self.frequencies.to(dtype))  # [T, D / 2]
                return torch.cat([angle.sin(), angle.cos()], 1)
            y, x = self._axes(position)
            if c.pos_combine == "stack":
                return torch.cat([x, y], 1)
            return y * x if c.pos_combine == "product" else y + x

    def _axes(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """phi_y(row) and phi_x(col), each [T, D], or [T, D / 2] for stack."""
        c = self.config
        if c.pos_table == "learned":
            weights_y = resample_weights(position[:, 0], 1.0, c.pos_grid[0], "bilinear")
            weights_x = resample_weights(position[:, 1], 1.0, c.pos_grid[1], "bilinear")
            return weights_y @ self.table_y.to(weights_y), weights_x @ self.table_x.to(weights_x)
        width = c.width // 2 if c.pos_combine == "stack" else c.width
        y, x = sinusoid(position[:, 0], width), sinusoid(position[:, 1], width)
        # A sum of one phi on both axes could not tell (row, col) from (col, row): x runs backwards.
        return y, x if c.pos_combine == "stack" else x.flip(1)

    def _grid(self, coords: Tensor, sides: Tensor, dtype: torch.dtype) -> Tensor:
        """The table resized to each token's grid and read at its cell."""
        c = self.config
        position = coordinates(coords, sides, c.pos_coords, c.pos_grid, dtype)
        step = coordinates(coords + 1, sides, c.pos_coords, c.pos_grid, dtype) - position  # [T, 2]
        y = resample_weights(position[:, 0], step[:, 0], c.pos_grid[0], c.pos_resize)  # [T, rows]
        x = resample_weights(position[:, 1], step[:, 1], c.pos_grid[1], c.pos_resize)  # [T, cols]
        return (y[:, :, None] * x[:, None, :]).flatten(1) @ self.table.flatten(0, 1).to(dtype)


def sinusoid(position: Tensor, width: int) -> Tensor:
    """[T] -> [T, width]: sines, then cosines, at width / 2 frequencies from 1 to 1 / 10000 (MoCo v3, 5).

    Stacked for both axes and with absolute coordinates this is big_vision's sincos2d.
    """
    count = width // 2
    i = torch.arange(count, dtype=position.dtype, device=position.device)
    angle = position[:, None] * 10000.0 ** (-i / max(1, count - 1))
    return torch.cat([angle.sin(), angle.cos()], 1)


def rope_tables(position: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, head_dim / 2] of axial rotary embedding: half the angles turn with the row, half
    with the column (RoPE-Axial, arXiv 2403.13298 3.2). Position [T, 2]; zero turns nothing."""
    i = torch.arange(head_dim // 4, dtype=position.dtype, device=position.device)
    angle = (position[:, :, None] * theta ** (-4 * i / head_dim)).flatten(1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys [T, heads, head_dim] by tables [T, head_dim / 2]; dtype as the input's."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)
