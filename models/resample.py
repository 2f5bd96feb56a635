"""Resampling as weights, and PI-resize: patch-embedding weights for every patch size from one buffer.

A row of resampling weights says how much each source cell counts. Half-pixel centres throughout: cell i of n
covers [i, i + 1) / n of the side. With antialias the kernel is widened by the shrink factor, as Pillow,
jax.image.resize and F.interpolate(antialias=True) do.

PI-resize (FlexiViT 3.4): weights w [P, P, 3, D] are stored at one buffer size P. For patches of side p they
become w_p = (B^T)^+ w with B the matrix that resizes P x P pixels to p x p, so that <B x, w_p> = <x, w>
wherever that is possible. B is a Kronecker product of two one-dimensional resizes, hence (B^T)^+ = K (x) K
with K = (B_1d^T)^+ [p, P]: applied along rows, then columns. Always from the stored buffer, never in a
chain. A third axis, the frames of a clip, is one more such product.
"""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from packvit.packing import Shape

Operator = Literal[
    "bilinear", "bilinear_antialias", "bicubic_antialias", "natural", "plain_bilinear_antialias"
]
NEIGHBOURS = 0.97  # correlation of neighbouring pixels in natural images, which `natural` assumes


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


@lru_cache(maxsize=512)
def pi_matrix(operator: Operator, stored: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """K [size, stored], computed in float64 and rounded once to `dtype`.

    `natural` weighs pixels by the covariance NEIGHBOURS^|i-j| of natural images: with S = L L^T,
    K = (L^T B^T)^+ L^T is the best w_p for images of that covariance. `plain_bilinear_antialias` takes no
    pseudo-inverse: it resizes the weights as an image, K = B, which FlexiViT 3.4 compares with.
    """
    # A matrix first made during inference must still serve a later training step.
    with torch.inference_mode(False), torch.no_grad():
        kernel = "bilinear" if operator == "natural" else operator.removeprefix("plain_")
        b_t = resize_matrix(stored, size, kernel).T
        if operator.startswith("plain_"):
            k = b_t.T
        elif operator == "natural":
            distance = (torch.arange(stored)[:, None] - torch.arange(stored)).abs()
            l_t = torch.linalg.cholesky(NEIGHBOURS ** distance.double()).T
            k = torch.linalg.pinv(l_t @ b_t) @ l_t
        else:
            k = torch.linalg.pinv(b_t)
        return k.to(device=device, dtype=dtype)


def pi_resize(weight: Tensor, shape: Shape, operator: Operator) -> Tensor:
    """Patch-embedding weights [P1, P2, C, D] for patches of `shape`: [p1, p2, C, D], differentiable.

    Costs p P^2 C D + p^2 P C D multiply-adds; equal to the full pseudo-inverse of the two-dimensional
    resize. Any number of axes may stand before C. FlexiViT 3.4.
    """
    for axis, size in enumerate(shape):
        stored = weight.shape[axis]
        if size != stored:
            k = pi_matrix(operator, stored, size, weight.dtype, weight.device)
            # [axes before, stored, axes behind] -> [axes before, size, axes behind]
            lines = weight.reshape(weight.shape[:axis].numel(), stored, -1)
            lines = torch.einsum("pq,bqa->bpa", k, lines)
            weight = lines.reshape(*weight.shape[:axis], size, *weight.shape[axis + 1 :])
    return weight
