"""Patch embedding for every patch size from one set of weights: PI-resize, FlexiViT 3.4.

The weights w [P, P, 3, D] are stored at one buffer size P. For patches of side p they become
w_p = (B^T)^+ w with B the matrix that resizes P x P pixels to p x p, so that <B x, w_p> = <x, w> wherever
that is possible. B is a Kronecker product of two one-dimensional resizes, hence (B^T)^+ = K (x) K with
K = (B_1d^T)^+ [p, P]: applied along rows, then columns. Always from the stored buffer, never in a chain.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from packvit.models.config import Operator
from packvit.models.resample import resize_matrix


@lru_cache(maxsize=512)
def pi_matrix(operator: Operator, stored: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """K [size, stored], computed in float64 and rounded once to `dtype`.

    `natural` weighs pixels by the covariance 0.97^|i-j| of natural images: with S = L L^T,
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
            l_t = torch.linalg.cholesky(0.97 ** distance.double()).T
            k = torch.linalg.pinv(l_t @ b_t) @ l_t
        else:
            k = torch.linalg.pinv(b_t)
        return k.to(device=device, dtype=dtype)


def pi_resize(weight: Tensor, size: int | tuple[int, int], operator: Operator) -> Tensor:
    """Patch-embedding weights [P1, P2, C, D] for patches of `size`: [p1, p2, C, D], differentiable.

    Costs p P^2 C D + p^2 P C D multiply-adds; equal to the full pseudo-inverse of the two-dimensional
    resize. FlexiViT 3.4.
    """
    rows, cols = size if isinstance(size, tuple) else (size, size)
    if rows != weight.shape[0]:
        k = pi_matrix(operator, weight.shape[0], rows, weight.dtype, weight.device)
        weight = torch.tensordot(k, weight, 1)  # [p1, P2, C, D]
    if cols != weight.shape[1]:
        k = pi_matrix(operator, weight.shape[1], cols, weight.dtype, weight.device)
        weight = torch.einsum("pq,rqcd->rpcd", k, weight)  # [p1, p2, C, D]
    return weight


class PatchEmbed(nn.Module):
    """Patches of any size to tokens; one matrix product for each patch size that is present.

    Args:
        width: D.
        buffer: P, side of the stored weights.
        operator: the resize, see `pi_matrix`.
        mean, std: per channel, of pixels in [0, 1]; uint8 patches are normalised here.
    """

    def __init__(
        self,
        width: int,
        buffer: int = 32,
        operator: Operator = "bilinear_antialias",
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.operator: Operator = operator
        self.weight = nn.Parameter(torch.empty(buffer, buffer, 3, width))
        self.bias = nn.Parameter(torch.zeros(width))
        # LeCun normal, as Flax convolutions and so big_vision; PI-resize to p keeps it LeCun normal for p.
        nn.init.normal_(self.weight, std=(buffer * buffer * 3) ** -0.5)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]), persistent=False)
        self.register_buffer(
            "shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]), persistent=False
        )

    def normalise(self, patches: Tensor) -> Tensor:
        """uint8 [n, p*p*3] -> (x / 255 - mean) / std in the weights' dtype."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        x = patches.unflatten(1, (-1, 3)).to(dtype)
        return torch.addcmul(self.shift.to(dtype), x, self.scale.to(dtype)).flatten(1).to(self.weight.dtype)

    def forward(self, patches: dict[int, Tensor], slots: dict[int, Tensor], is_patch: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            patches: {p: uint8 or floating [n_p, p*p*3]}; floating patches are normalised already.
            slots: {p: int64 [n_p]}, the flat slot of each patch.
            is_patch: bool [T], False where a slot is no image's; patches there count as zeros.

        Returns:
            [T, D] in the weights' dtype; zeros where no patch goes.
        """
        if not patches:
            # A batch without images still gives the weights a gradient, of zeros: other ranks wait for it.
            buffer = self.weight.shape[0]
            patches = {buffer: self.weight.new_empty(0, buffer**2 * 3)}
            slots = {buffer: torch.empty(0, dtype=torch.int64, device=self.weight.device)}
        tokens, places = [], []
        for p, values in patches.items():
            if values.is_floating_point():
                # Whatever stands in padding, NaN too, must not reach the gradient of the weights.
                x = values.to(self.weight.dtype).where(is_patch[slots[p]][:, None], 0)
            else:
                x = self.normalise(values)
            with torch.autocast(x.device.type, enabled=False):
                # In half precision the resize would cost digits that the product keeps.
                weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
                weight = pi_resize(weight, p, self.operator).flatten(0, 2)  # [p*p*3, D]
            tokens.append(x @ weight.to(x.dtype))
            places.append(slots[p])
        out = self.weight.new_zeros(is_patch.shape[0], self.weight.shape[-1])
        # Summing in the residual stream's dtype keeps float32 under autocast.
        x = torch.cat(tokens).to(out.dtype) + self.bias  # [n, D]
        return out.index_copy(0, torch.cat(places), x)
