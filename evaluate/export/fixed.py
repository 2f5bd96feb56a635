"""The graph of one shape: a batch of images of one size at one patch size, for compilers such as TensorRT.

The patch embedding is resized to the patch size and the position of every token is a constant, so the graph
is a convolution and a plain Transformer without masks.
"""

import torch
from torch import Tensor, nn

from packvit.evaluate.export.layers import encode, finish, plain_copy, pool
from packvit.models import PackedViT
from packvit.models.position.embedding import Places, centres, rope_tables
from packvit.models.resample import pi_resize


class FixedGraph(nn.Module):
    """The model as a function of plain images.

    Args:
        model: not changed.
        grid: (rows, cols) of patches.
        patch_size: p, in pixels.
    """

    def __init__(self, model: PackedViT, grid: tuple[int, int], patch_size: int) -> None:
        super().__init__()
        self.model = model = plain_copy(model)
        self.patch_size = patch_size
        c, embed = model.config, model.patch_embed
        rows, cols = (torch.arange(n) for n in grid)
        coords = torch.cartesian_prod(rows, cols)  # [n, 2]
        places = Places(coords, torch.ones_like(coords), torch.tensor(grid).expand_as(coords))
        tokens = embed.bias if model.pos_embed is None else embed.bias + model.pos_embed(places)
        weight = pi_resize(embed.weight, (patch_size, patch_size), embed.operator)  # [p, p, 3, D]
        self.weight = nn.Buffer(weight.permute(3, 2, 0, 1).contiguous())
        self.tokens = nn.Buffer(tokens.expand(len(coords), -1).contiguous())  # what is added to each patch
        self.scale, self.shift = (nn.Buffer(t[:, None, None].clone()) for t in (embed.scale, embed.shift))
        rope = None
        if c.rotary_coords is not None:
            position = centres(places, c.rotary_coords, c.pos_grid, torch.float32)
            position = torch.cat([position, position.new_zeros(c.prefix, 2)])
            rope = torch.stack(rope_tables(position, c.head_dim, c.rope_theta))
        self.rope: Tensor | None
        self.register_buffer("rope", rope)
        del model.patch_embed, model.pos_embed  # an exported program would keep them

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(logits [B, C], features [B, D]), or (features,) of a model without a head.

        Args:
            images: uint8 or float32 [B, 3, rows * p, cols * p], RGB from 0 to 255.
        """
        model, batch = self.model, images.shape[0]
        x = images.to(torch.float32) * self.scale + self.shift
        x = nn.functional.conv2d(x, self.weight, stride=self.patch_size)  # [B, D, rows, cols]
        x = x.flatten(2).transpose(1, 2) + self.tokens  # [B, n, D]
        n = self.tokens.shape[0]
        if model.prefix is not None:
            # Behind the patches: attention has no order.
            x = torch.cat([x, model.prefix.expand(batch, -1, -1)], 1)
        rope = None
        if self.rope is not None:
            rope = self.rope[0].repeat(batch, 1), self.rope[1].repeat(batch, 1)  # [B * (n + prefix), ...]
        x = encode(model, x, rope, None)
        return finish(model, pool(model, x[:, :n], x[:, n:], None))
