"""One-dimensional resampling as weights: a row of the result says how much each source cell counts.

Half-pixel centres throughout: cell i of n covers [i, i + 1) / n of the side. With antialias the kernel is
widened by the shrink factor, as Pillow, jax.image.resize and F.interpolate(antialias=True) do.
"""

import torch
from torch import Tensor


def resample_weights(position: Tensor, step: Tensor | float, size: int, kernel: str) -> Tensor:
    """How much each of `size` source cells contributes at each position.

    Args:
        position: floating [...], in units of source cells, 0 = centre of the first cell.
        step: distance between neighbouring positions in the same units, [...] or one number; above 1 it
            shrinks and an antialiasing kernel widens.
        size: number of source cells.
        kernel: bilinear, bilinear_antialias, bicubic (a = -0.75) or bicubic_antialias (a = -0.5); the
            constants are those of F.interpolate.

    Returns:
        [..., size] in position's dtype; each row sums to 1.
    """
    cells = torch.arange(size, dtype=position.dtype, device=position.device)
    if not kernel.endswith("_antialias"):
        # Beyond the border the outermost cell goes on.
        if kernel == "bicubic":
            return _clamped_cubic(position, size)
        return (1 - (cells - position.clamp(0, size - 1)[..., None]).abs()).clamp(min=0)
    distance = (cells - position[..., None]) / torch.as_tensor(
        step, dtype=position.dtype, device=position.device
    ).clamp(min=1)[..., None]
    weights = _cubic(distance, -0.5) if kernel.startswith("bicubic") else (1 - distance.abs()).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def resize_matrix(size_in: int, size_out: int, kernel: str) -> Tensor:
    """B [size_out, size_in] float64 on the CPU: B @ x resizes a line x of `size_in` pixels."""
    step = size_in / size_out
    position = (torch.arange(size_out, dtype=torch.float64) + 0.5) * step - 0.5
    return resample_weights(position, step, size_in, kernel)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _clamped_cubic(position: Tensor, size: int) -> Tensor:
    first = position.floor()
    taps = first[..., None] + torch.arange(-1, 3, dtype=position.dtype, device=position.device)  # [..., 4]
    weights = _cubic(taps - position[..., None], -0.75)
    index = taps.clamp(0, size - 1).long()
    return weights.new_zeros(*position.shape, size).scatter_add(-1, index, weights)
