"""PackedViT: one Vision Transformer for every patch size and resolution, over packed sequences.

The tokens of a batch stay one flat tensor [T, D] from the patch embedding to the pooling; nothing in
between loops over images. With cls or register tokens T grows by N * prefix (see layout).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from packvit.models.attention import Segments, choose_backend
from packvit.models.block import Block, Context, Parts, after, before, make_norm
from packvit.models.config import ViTConfig
from packvit.models.layout import Layout
from packvit.models.patch_embed import PatchEmbed
from packvit.models.pool import Pool
from packvit.models.pos_embed import PosEmbed, coordinates, rope_tables
from packvit.packing import PackedBatch


class Outputs(NamedTuple):
    """All that one forward pass gives.

    logits: [N, num_classes]; the features if there is no head.
    features: [N, config.feature_dim], what enters the head.
    tokens: [T, D], the last layer at the batch's slots, normalised if last_norm is tokens; padding means
        nothing.
    """

    logits: Tensor
    features: Tensor
    tokens: Tensor


class PackedViT(nn.Module):
    """The model.

    Args:
        config: what it is.
        backend: attention backend, `auto` or a key of BACKENDS; may be set later as `model.backend`.
    """

    def __init__(self, config: ViTConfig, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        width = config.width
        self.patch_embed = PatchEmbed(
            width, config.patch_buffer, config.patch_operator, config.image_mean, config.image_std
        )
        self.pos_embed = PosEmbed(config) if config.pos_embed in ("factorized", "grid_2d") else None
        self.prefix = nn.Parameter(torch.randn(config.prefix, width) * 0.02) if config.prefix else None
        self.pre_norm = make_norm(config, width) if config.pre_norm else None
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(
            Block(config, drop_path=config.drop_path * i / last) for i in range(config.depth)
        )
        pooled = width * (2 if config.pool == "cls_mean" else 1)
        last_width = pooled if config.last_norm == "pooled" else width
        self.norm = make_norm(config, last_width) if config.last_norm != "none" else nn.Identity()
        self.pool = Pool(config)
        self.rep = nn.Linear(pooled, config.rep_size) if config.rep_size else None
        self.head = nn.Linear(config.feature_dim, config.num_classes) if config.num_classes else None
        if self.head is not None:
            # Zeros, as big_vision: the first loss is exactly that of knowing nothing.
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits [N, num_classes], in the order of the batch's images; features if there is no head."""
        x = self.features(batch)
        return x if self.head is None else self.head(x)

    def features(self, batch: PackedBatch) -> Tensor:
        """What enters the head: [N, config.feature_dim], pooled and normalised."""
        layout = Layout.build(batch, self.config.prefix)
        return self._pool(self._encode(batch, layout), layout)

    def outputs(self, batch: PackedBatch) -> Outputs:
        """Logits, features and tokens of one forward pass."""
        layout = Layout.build(batch, self.config.prefix)
        x = self._encode(batch, layout)  # [T, D]
        features = self._pool(x, layout)
        logits = features if self.head is None else self.head(features)
        return Outputs(logits, features, x if layout.slot_of is None else x[layout.slot_of])

    def tokens(self, batch: PackedBatch) -> list[Tensor]:
        """The last layer's patch tokens as N dense maps [rows, cols, D], normalised if last_norm is tokens.

        Raises:
            ValueError: tokens of an image were dropped, so that its map would have holes.
        """
        layout = Layout.build(batch, self.config.prefix)
        grids = batch.grids.tolist()
        lengths = torch.bincount(layout.image_index[layout.is_patch], minlength=len(grids)).tolist()
        for i, ((rows, cols), length) in enumerate(zip(grids, lengths, strict=True)):
            if rows * cols != length:
                name = batch.keys[i] if i < len(batch.keys) and batch.keys[i] else i
                raise ValueError(
                    f"image {name!r} keeps {length} of {rows}x{cols} tokens: dense maps need all of them"
                )
        # Slots are in the packer's order, which need not be that of the images.
        order = layout.image_index[layout.is_patch].argsort(stable=True)
        x = self._encode(batch, layout)[layout.is_patch][order]
        return [part.view(rows, cols, -1) for part, (rows, cols) in zip(x.split(lengths), grids, strict=True)]

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile what blocks do to each token alone: norms, projections and MLP.

        One compilation serves all blocks, whatever images a batch holds and however many tokens; training,
        evaluation and autocast have their own. Attention stays as it is.

        Args:
            backend: of torch.compile.
        """
        parts = Parts(
            torch.compile(before, backend=backend, dynamic=True),
            torch.compile(after, backend=backend, dynamic=True),
        )
        for block in self.modules():
            if isinstance(block, Block):
                block.parts = parts

    def _pool(self, x: Tensor, layout: Layout) -> Tensor:
        """Tokens [T, D] to features [N, config.feature_dim]."""
        x = self.pool(x, layout)  # [N, D]
        if self.config.last_norm == "pooled":
            x = self.norm(x)
        return x if self.rep is None else self.rep(x).tanh()

    def _encode(self, batch: PackedBatch, layout: Layout) -> Tensor:
        """Embedding and blocks: [T, D]; with the last norm if it is of tokens."""
        coords, sides = self._grid_positions(batch, layout)
        x = self._embed(batch, layout, coords, sides)
        context = self._context(x, layout, coords, sides)
        every = self.config.checkpoint_every
        for i, block in enumerate(self.blocks):
            if every and i % every == 0 and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context)
        return self.norm(x) if self.config.last_norm == "tokens" else x

    def _grid_positions(self, batch: PackedBatch, layout: Layout) -> tuple[Tensor, Tensor]:
        """(row, col) of every slot and (rows, cols) of its image's grid, each [T, 2]; 1x1 in padding."""
        sides = batch.grids.new_ones(layout.num_images + 1, 2)
        sides[:-1] = batch.grids
        return layout.place(batch.coords), sides[layout.image_index]

    def _embed(self, batch: PackedBatch, layout: Layout, coords: Tensor, sides: Tensor) -> Tensor:
        slots = batch.slots
        if layout.slot_of is not None:
            slots = {p: layout.slot_of[s] for p, s in slots.items()}
        x = self.patch_embed(batch.patches, slots, layout.is_patch)  # [T, D]
        if self.pos_embed is not None:
            x = x + self.pos_embed(coords, sides).to(x.dtype)
        # Nothing that stands in padding, NaN too, goes further than here, nor does its gradient.
        x = x.where(layout.is_patch[:, None], 0)
        if self.prefix is not None:
            tokens = self.prefix.expand(layout.num_images, -1, -1).flatten(0, 1)  # [N * prefix, D]
            x = x.index_copy(0, layout.prefix_slots.flatten(), tokens)
        return x if self.pre_norm is None else self.pre_norm(x)

    def _context(self, x: Tensor, layout: Layout, coords: Tensor, sides: Tensor) -> Context:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        backend = choose_backend(self.backend, x.device, dtype)
        rope = None
        if self.config.pos_embed == "rope_2d":
            c = self.config
            at_least_float32 = torch.promote_types(x.dtype, torch.float32)
            position = coordinates(coords, sides, c.pos_coords, c.pos_grid, at_least_float32)
            position = position.where(layout.is_patch[:, None], 0)  # cls and registers do not turn
            rope = rope_tables(position, c.head_dim, c.rope_theta)
        segments = Segments.build(layout.cu_seqlens, layout.max_len, backend, total=layout.num_slots)
        return Context(segments, rope, layout.image_index, layout.num_images)
