"""Models with parameters of each patch size, for benchmarks/cures.py: biases, or scales and shifts of norms.

`python benchmarks/per_size.py --kind own-norms -- digits FLAGS...` does what `packvit train digits FLAGS...`
does, with such a model. For the same seed, it is at first equal to the common one, to the bit. It is made
for this study: nothing else loads its weights, and it knows only the patch sizes of the study.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from replication import PATCHES
from torch import Tensor, nn

from packvit.cli.commands import dispatch
from packvit.models import PackedViT, ViTConfig
from packvit.models.attention.segments import Layout
from packvit.models.encoder.block import Block, Context
from packvit.models.resample import PatchEmbed, Shape
from packvit.packing import PackedBatch
from packvit.train.tasks import start


class TokenSizes:
    """The place in PATCHES of each token's patch size, for the batch that a model works on.

    Attributes:
        of_tokens: int64 [T]; any value in padding.
    """

    def __init__(self) -> None:
        self.of_tokens = torch.empty(0, dtype=torch.int64)

    def look(self, batch: PackedBatch, layout: Layout) -> None:
        """Take the sizes of a batch.

        Raises:
            ValueError: an image has another patch size.
        """
        is_size = batch.patch_sizes[:, None] == batch.patch_sizes.new_tensor(PATCHES)  # [N, sizes]
        if not is_size.any(1).all():
            raise ValueError(f"patch sizes {sorted(set(batch.patch_sizes.tolist()))}: known are {PATCHES}")
        # Padding, -1, reads the entry beyond the images.
        self.of_tokens = F.pad(is_size.int().argmax(1), (0, 1))[layout.owner]

    def rows(self, values: nn.ParameterList) -> Tensor:
        """The values [D] of each token's patch size: [T, D]."""
        return torch.stack(list(values)).index_select(0, self.of_tokens)


class OwnNorm(nn.Module):
    """LayerNorm with the scale and shift of each token's patch size, which start as those of `shared`.

    They are vectors, so that they are trained like those of a common norm: by AdamW, without decay.
    """

    def __init__(self, shared: nn.Module | None, sizes: TokenSizes) -> None:
        super().__init__()
        if not isinstance(shared, nn.LayerNorm):
            raise ValueError(f"norms of each patch size are made for LayerNorm, not for {shared}")
        self.shape, self.eps, self.sizes = shared.normalized_shape, shared.eps, sizes
        self.scales = nn.ParameterList(shared.weight.detach().clone() for _ in PATCHES)
        self.shifts = nn.ParameterList(shared.bias.detach().clone() for _ in PATCHES)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        x = F.layer_norm(x, self.shape, eps=self.eps)
        return x * self.sizes.rows(self.scales) + self.sizes.rows(self.shifts)


class OwnBiases(PatchEmbed):
    """The patch embedding with a bias of each patch size, zero at first, beside the common one."""

    def __init__(self, config: ViTConfig, shared: PatchEmbed, sizes: TokenSizes) -> None:
        buffer = (config.patch_buffer, config.patch_buffer)
        super().__init__(config.width, buffer, config.patch_operator, config.image_mean, config.image_std)
        self.weight, self.bias, self.sizes = shared.weight, shared.bias, sizes
        self.biases = nn.ParameterList(torch.zeros(config.width) for _ in PATCHES)

    def forward(self, patches: dict[Shape, Tensor], slots: dict[Shape, Tensor], is_patch: Tensor) -> Tensor:
        """See PatchEmbed; the slots of padding hold the bias of some patch size."""
        return super().forward(patches, slots, is_patch) + self.sizes.rows(self.biases)


class PerSizeViT(PackedViT):
    """PackedViT that looks up the patch sizes of a batch before it is embedded."""

    def __init__(self, config: ViTConfig, backend: str = "auto") -> None:
        super().__init__(config, backend)
        self.sizes = TokenSizes()

    def _embed(self, batch: PackedBatch, layout: Layout) -> tuple[Tensor, Context]:
        self.sizes.look(batch, layout)
        return super()._embed(batch, layout)


class OwnNormsViT(PerSizeViT):
    """Every norm of tokens in the blocks and after them has a scale and a shift of each patch size."""

    def __init__(self, config: ViTConfig, backend: str = "auto") -> None:
        super().__init__(config, backend)
        if config.last_norm != "tokens":
            raise ValueError("norms of each patch size are made for a last norm of tokens")
        for block in self.blocks:
            assert isinstance(block, Block)
            block.norm1 = OwnNorm(block.norm1, self.sizes)
            block.norm2 = OwnNorm(block.norm2, self.sizes)
        self.norm = OwnNorm(self.norm, self.sizes)


class OwnBiasesViT(PerSizeViT):
    """Each patch size has a bias of its own after the patch embedding."""

    def __init__(self, config: ViTConfig, backend: str = "auto") -> None:
        super().__init__(config, backend)
        self.patch_embed = OwnBiases(config, self.patch_embed, self.sizes)


KINDS = {"own-biases": OwnBiasesViT, "own-norms": OwnNormsViT}


def main() -> int:
    """Train with a model of the kind that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kind", choices=list(KINDS), required=True)
    parser.add_argument("train", nargs="+", help="what packvit train takes, after --")
    arguments = parser.parse_args()
    start.PackedViT = KINDS[arguments.kind]
    return dispatch(["train", *arguments.train])


if __name__ == "__main__":
    sys.exit(main())
