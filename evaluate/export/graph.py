"""The graph of packed tokens: any number of images of any sizes and patch sizes in one call.

The graph contains no patch size: <x, K w K^T> = <K^T x K, w>, so patches that were brought to the side of the
stored embedding outside the graph (see reader.py) are all multiplied by one matrix.
"""

import torch
from torch import Tensor, nn

from packvit.evaluate.export.layers import encode, finish, plain_copy, pool
from packvit.models import PackedViT
from packvit.models.position.embedding import Places, centres, rope_tables


class PackedGraph(nn.Module):
    """The model as a function of four tensors, in operations that every format supports.

    Attention is dense over all T tokens: heads * (T + N * prefix)^2 * 4 bytes in each layer.
    """

    def __init__(self, model: PackedViT) -> None:
        super().__init__()
        self.model = plain_copy(model)

    def forward(self, patches: Tensor, coords: Tensor, grids: Tensor, segment: Tensor) -> tuple[Tensor, ...]:
        """(logits [N, C], features [N, D]), or (features,) of a model without a head.

        Args:
            patches: float32 [T, P * P * 3], normalised and brought to the buffer's side P; row-major (row,
                col, channel).
            coords: int64 [T, 2], (row, col) of each token in its image's grid.
            grids: int64 [N, 2], rows and cols of each image; every image has a token.
            segment: int64 [T], image of each token in any order, 0..N-1; -1 is padding.
        """
        model = self.model
        c = model.config
        x = patches @ model.patch_embed.weight.flatten(0, 2) + model.patch_embed.bias  # [T, D]
        places = Places(coords, torch.ones_like(coords), grids[segment])
        if model.pos_embed is not None:
            x = x + model.pos_embed(places)
        images = torch.arange(grids.shape[0], device=x.device)
        position = None
        if c.rotary_coords is not None:
            position = centres(places, c.rotary_coords, c.pos_grid, x.dtype)  # [T, 2]
        owner = segment
        if model.prefix is not None:
            # Behind the patches: attention has no order.
            x = torch.cat([x, model.prefix.repeat(grids.shape[0], 1)])  # [T + N * prefix, D]
            owner = torch.cat([segment, images.repeat_interleave(c.prefix)])
            if position is not None:
                position = torch.cat([position, position.new_zeros(grids.shape[0] * c.prefix, 2)])
        rope = None if position is None else rope_tables(position, c.head_dim, c.rope_theta)
        x = encode(model, x[None], rope, owner[:, None] == owner)[0]
        tokens = patches.shape[0]
        prefix = x[tokens:].reshape(grids.shape[0], c.prefix, c.width)
        return finish(model, pool(model, x[None, :tokens], prefix, images[:, None] == segment))
