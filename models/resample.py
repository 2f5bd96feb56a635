"""Resampling as weights, PI-resize, and the patch embedding: every patch size from one buffer of weights.

A row of resampling weights holds the weight of each source cell. Centres are at half pixels throughout: cell
i of n covers [i, i + 1) / n of the side. With antialias the kernel is widened by the shrink factor, as in
Pillow, jax.image.resize and F.interpolate(antialias=True).

PI-resize (FlexiViT 3.4): weights w [P, P, 3, D] are stored at one buffer size P. For patches of side p they
become w_p = (B^T)^+ w with B the matrix that resizes P x P pixels to p x p, so that <B x, w_p> = <x, w>
wherever that is possible. B is a Kronecker product of two one-dimensional resizes, hence (B^T)^+ = K (x) K
with K = (B_1d^T)^+ [p, P], applied along rows, then columns. The stored buffer is always the source; resizes
are never chained. A third axis, the frames of a clip, is one more such product.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from packvit.packing import Shape

Operator = Literal[
    "bilinear", "bilinear_antialias", "bicubic_antialias", "natural", "plain_bilinear_antialias"
]
Kernel = Literal["bilinear", "bilinear_antialias", "bicubic", "bicubic_antialias"]
NEIGHBOURS = 0.97  # correlation of neighbouring pixels in natural images, which `natural` assumes


def resample_weights(position: Tensor, step: Tensor | float, size: int, kernel: Kernel) -> Tensor:
    """How much each of `size` source cells contributes at each position.

    Args:
        position: floating [...], in units of source cells, 0 = centre of the first cell.
        step: distance between neighbouring positions in the same units, [...] or one number; above 1, the
            resize shrinks and an antialiasing kernel widens.
        size: number of source cells.
        kernel: bilinear, bilinear_antialias, bicubic (a = -0.75) or bicubic_antialias (a = -0.5); the
            constants are those of F.interpolate.

    Returns:
        [..., size] in position's dtype; each row sums to 1.
    """
    cells = torch.arange(size, dtype=position.dtype, device=position.device)
    widened = step.clamp(min=1)[..., None] if isinstance(step, Tensor) else max(1.0, step)
    match kernel:
        # Without antialias the outermost cell goes on beyond the border.
        case "bicubic":
            return _clamped_cubic(position, size)
        case "bilinear":
            return (1 - (cells - position.clamp(0, size - 1)[..., None]).abs()).clamp(min=0)
        case "bicubic_antialias":
            weights = _cubic((cells - position[..., None]) / widened, -0.5)
        case "bilinear_antialias":
            weights = (1 - ((cells - position[..., None]) / widened).abs()).clamp(min=0)
        case _ as unknown:
            assert_never(unknown)
    return weights / weights.sum(-1, keepdim=True)


def resize_matrix(size_in: int, size_out: int, kernel: Kernel) -> Tensor:
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

    `natural` weighs pixels by the covariance NEIGHBOURS^|i-j| of natural images: with S = L L^T, K = (L^T
    B^T)^+ L^T gives the best w_p for images with that covariance. `plain_bilinear_antialias` uses no
    pseudo-inverse: it resizes the weights like an image, K = B, as in a comparison of FlexiViT 3.4.
    """
    # A matrix first made during inference must still serve a later training step.
    with torch.inference_mode(False), torch.no_grad():
        match operator:
            case "bilinear" | "bilinear_antialias" | "bicubic_antialias":
                k = torch.linalg.pinv(resize_matrix(stored, size, operator).T)
            case "natural":
                distance = (torch.arange(stored)[:, None] - torch.arange(stored)).abs()
                l_t = torch.linalg.cholesky(NEIGHBOURS ** distance.double()).T
                k = torch.linalg.pinv(l_t @ resize_matrix(stored, size, "bilinear").T) @ l_t
            case "plain_bilinear_antialias":
                k = resize_matrix(stored, size, "bilinear_antialias")
            case _ as unknown:
                assert_never(unknown)
        return k.to(device=device, dtype=dtype)


def pi_matrices(
    operator: Operator, weight: Tensor, shape: Shape, dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """K of each axis for weights [P1, P2, C, D] and patches of `shape`; None for an axis without resizing."""
    return tuple(
        None if size == stored else pi_matrix(operator, stored, size, dtype, weight.device)
        for size, stored in zip(shape, weight.shape, strict=False)
    )


def pi_resize(weight: Tensor, shape: Shape, operator: Operator) -> Tensor:
    """Patch-embedding weights [P1, P2, C, D] for patches of `shape`: [p1, p2, C, D], differentiable.

    Costs p P^2 C D + p^2 P C D multiply-adds; equal to the full pseudo-inverse of the two-dimensional resize.
    Any number of axes may precede C. FlexiViT 3.4.
    """
    return _resize(weight, pi_matrices(operator, weight, shape, weight.dtype))


def _resize(weight: Tensor, matrices: tuple[Tensor | None, ...]) -> Tensor:
    for axis, k in enumerate(matrices):
        if k is not None:
            # [axes before, stored, axes behind] -> [axes before, size, axes behind]
            lines = weight.reshape(weight.shape[:axis].numel(), weight.shape[axis], -1)
            lines = torch.einsum("pq,bqa->bpa", k, lines)
            weight = lines.reshape(*weight.shape[:axis], k.shape[0], *weight.shape[axis + 1 :])
    return weight


def embed_patches(
    embed: "PatchEmbed",
    patches: Tensor,
    is_real: Tensor | None,
    matrices: tuple[Tensor | None, ...],
    dtype: torch.dtype,
) -> Tensor:
    """Patches of one shape to tokens. It must be called without autocast, in whose dtype the resize and its
    gradient would lose digits that the product keeps.

    Args:
        patches: uint8 or floating [n, prod(shape) * 3].
        is_real: bool [n], for floating patches; those with False count as zeros.
        matrices: result of pi_matrices.
        dtype: dtype of the product.

    Returns:
        [n, D] in the weights' dtype but at least float32.
    """
    weight = embed.weight.to(torch.promote_types(embed.weight.dtype, torch.float32))
    if is_real is None:
        x = embed.normalise(patches)
    else:
        # Whatever stands in padding, NaN too, must not reach the gradient of the weights.
        x = patches.to(embed.weight.dtype).where(is_real[:, None], 0)
    resized = _resize(weight, matrices).flatten(0, -2)  # [p*p*3, D]
    # In float32 the bias and positions are added.
    return (x.to(dtype) @ resized.to(dtype)).to(weight.dtype) + embed.bias


class PatchEmbed(nn.Module):
    """Patches of any shape to tokens; one matrix product for each shape that is present.

    Args:
        width: D.
        buffer: shape of the stored weights, (P, P) for pictures.
        operator: the resize, see `pi_matrix`.
        mean, std: of each channel, for pixels in [0, 1]; uint8 patches are normalised here.
    """

    # The function that embeds patches of a shape: `PackedViT.compile_blocks` has a compiled one for each.
    find: Callable[[Shape], Callable[..., Tensor]] = staticmethod(lambda shape: embed_patches)

    def __init__(
        self,
        width: int,
        buffer: Shape = (32, 32),
        operator: Operator = "bilinear_antialias",
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.operator: Operator = operator
        self.weight = nn.Parameter(torch.empty(*buffer, 3, width))
        self.bias = nn.Parameter(torch.zeros(width))
        # LeCun normal, as Flax convolutions and so big_vision; PI-resize to p keeps it LeCun normal for p.
        nn.init.normal_(self.weight, std=(math.prod(buffer) * 3) ** -0.5)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]), persistent=False)
        self.register_buffer(
            "shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]), persistent=False
        )

    def normalise(self, patches: Tensor) -> Tensor:
        """uint8 [n, pixels * 3] -> (x / 255 - mean) / std in the weights' dtype."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        x = patches.unflatten(1, (-1, 3)).to(dtype)
        return torch.addcmul(self.shift.to(dtype), x, self.scale.to(dtype)).flatten(1).to(self.weight.dtype)

    def forward(self, patches: dict[Shape, Tensor], slots: dict[Shape, Tensor], is_patch: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            patches: {shape: uint8 or floating [n, prod(shape) * 3]}; floating ones are already normalised.
            slots: {shape: int64 [n]}, the flat slot of each patch.
            is_patch: bool [T], False for slots without an image; patches there count as zeros.

        Returns:
            [T, D] in the weights' dtype but at least float32; zeros in slots without a patch.
        """
        if not patches:
            # A batch without images still gives the weights a gradient, of zeros: other ranks wait for it.
            buffer = tuple(self.weight.shape[:-2])
            patches = {buffer: self.weight.new_empty(0, math.prod(buffer) * 3)}
            slots = {buffer: torch.empty(0, dtype=torch.int64, device=self.weight.device)}
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        device = is_patch.device.type
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        tokens = []
        with torch.autocast(device, enabled=False):
            for shape, values in patches.items():
                is_real = is_patch[slots[shape]] if values.is_floating_point() else None
                matrices = pi_matrices(self.operator, self.weight, shape, dtype)
                # A compiler makes a single patch a case of its own.
                embed = self.find(shape) if len(values) > 1 else embed_patches
                tokens.append(embed(self, values, is_real, matrices, product))
        out = torch.zeros(is_patch.shape[0], self.weight.shape[-1], dtype=dtype, device=is_patch.device)
        # Not compiled: neither how many sizes there are nor a scatter is anything for a compiler.
        return out.index_copy(0, torch.cat([slots[shape] for shape in patches]), torch.cat(tokens))
