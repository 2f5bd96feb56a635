"""PackedViT: one Vision Transformer for every patch size and resolution, over packed sequences.

The tokens of a batch stay one flat tensor [T, D] from the patch embedding to the pooling; nothing in
between loops over images. With cls or register tokens T grows by N * prefix (see Layout).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from packvit.models.attention.backends import choose_backend
from packvit.models.attention.segments import Layout, Segments
from packvit.models.config import ViTConfig
from packvit.models.encoder.block import Block, Context, make_norm, meet
from packvit.models.encoder.pool import Pool
from packvit.models.position.embedding import ADDED, Places, PosEmbed, centres, rope_tables
from packvit.models.resample import Operator, pi_resize
from packvit.packing import PackedBatch, Shape


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


class PatchEmbed(nn.Module):
    """Patches of any shape to tokens; one matrix product for each shape that is present.

    Args:
        width: D.
        buffer: shape of the stored weights, (P, P) for pictures.
        operator: the resize, see `pi_matrix`.
        mean, std: per channel, of pixels in [0, 1]; uint8 patches are normalised here.
    """

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
            patches: {shape: uint8 or floating [n, prod(shape) * 3]}; floating ones are normalised already.
            slots: {shape: int64 [n]}, the flat slot of each patch.
            is_patch: bool [T], False where a slot is no image's; patches there count as zeros.

        Returns:
            [T, D] in the weights' dtype; zeros where no patch goes.
        """
        if not patches:
            # A batch without images still gives the weights a gradient, of zeros: other ranks wait for it.
            buffer = tuple(self.weight.shape[:-2])
            patches = {buffer: self.weight.new_empty(0, math.prod(buffer) * 3)}
            slots = {buffer: torch.empty(0, dtype=torch.int64, device=self.weight.device)}
        tokens, places = [], []
        for shape, values in patches.items():
            if values.is_floating_point():
                # Whatever stands in padding, NaN too, must not reach the gradient of the weights.
                x = values.to(self.weight.dtype).where(is_patch[slots[shape]][:, None], 0)
            else:
                x = self.normalise(values)
            with torch.autocast(x.device.type, enabled=False):
                # In half precision the resize would cost digits that the product keeps.
                weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
                weight = pi_resize(weight, shape, self.operator).flatten(0, -2)  # [p*p*3, D]
            tokens.append(x @ weight.to(x.dtype))
            places.append(slots[shape])
        out = self.weight.new_zeros(is_patch.shape[0], self.weight.shape[-1])
        # Summing in the residual stream's dtype keeps float32 under autocast.
        x = torch.cat(tokens).to(out.dtype) + self.bias  # [n, D]
        return out.index_copy(0, torch.cat(places), x)


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
        buffer = (config.patch_buffer, config.patch_buffer)
        self.patch_embed = PatchEmbed(
            width, buffer, config.patch_operator, config.image_mean, config.image_std
        )
        self.pos_embed = PosEmbed(config, width) if config.pos_embed in ADDED else None
        self.prefix = nn.Parameter(torch.randn(config.prefix, width) * 0.02) if config.prefix else None
        self.pre_norm = make_norm(config, width) if config.pre_norm else None
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(
            Block(config, drop_path=config.drop_path * i / last) for i in range(config.depth)
        )
        last_width = config.pooled_width if config.last_norm == "pooled" else width
        self.norm = make_norm(config, last_width) if config.last_norm != "none" else nn.Identity()
        self.pool = Pool(config, config.pool)
        self.rep = nn.Linear(config.pooled_width, config.rep_size) if config.rep_size else None
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
        layout = self._layout(batch)
        return self._pool(self._encode(batch, layout), layout)

    def outputs(self, batch: PackedBatch) -> Outputs:
        """Logits, features and tokens of one forward pass."""
        layout = self._layout(batch)
        x = self._encode(batch, layout)  # [T, D]
        features = self._pool(x, layout)
        logits = features if self.head is None else self.head(features)
        return Outputs(logits, features, x if layout.slot_of is None else x[layout.slot_of])

    def tokens(self, batch: PackedBatch) -> list[Tensor]:
        """The last layer's patch tokens as N dense maps [rows, cols, D], normalised if last_norm is tokens.

        Raises:
            ValueError: tokens of an image were dropped, or cover several cells, so that its map would have
                holes.
        """
        layout = self._layout(batch)
        grids = batch.grids.tolist()
        lengths = torch.bincount(layout.owner[layout.is_own], minlength=len(grids)).tolist()
        for i, ((rows, cols), length) in enumerate(zip(grids, lengths, strict=True)):
            if rows * cols != length:
                name = batch.keys[i] if i < len(batch.keys) and batch.keys[i] else i
                raise ValueError(
                    f"image {name!r} keeps {length} of {rows}x{cols} tokens: dense maps need all of them"
                )
        # Slots are in the packer's order, which need not be that of the images.
        order = layout.owner[layout.is_own].argsort(stable=True)
        x = self._encode(batch, layout)[layout.is_own][order]
        return [part.view(rows, cols, -1) for part, (rows, cols) in zip(x.split(lengths), grids, strict=True)]

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile what blocks do to each token alone: norms, projections and MLP.

        One compilation serves all blocks, whatever images a batch holds and however many tokens; training,
        evaluation and autocast have their own. Attention stays as it is.

        Args:
            backend: of torch.compile.
        """
        # Not a decorator: importing the compiler takes a second.
        uncompiled: Any = torch.compiler.disable(meet, reason="kernels and random numbers")
        for block in self.blocks:
            assert isinstance(block, Block)
            block.meet = uncompiled
            block.compile(backend=backend, dynamic=True)

    def _layout(self, batch: PackedBatch) -> Layout:
        """Where the tokens of a batch stand in the model."""
        prefix = 0 if self.prefix is None else len(self.prefix)
        return Layout.build(batch.cu_seqlens, batch.image_index, batch.num_images, batch.max_len, prefix)

    def _pool(self, x: Tensor, layout: Layout) -> Tensor:
        """Tokens [T, D] to features [N, config.feature_dim]."""
        x = self.pool(x, layout)  # [N, D]
        if self.config.last_norm == "pooled":
            x = self.norm(x)
        return x if self.rep is None else self.rep(x).tanh()

    def _encode(self, batch: PackedBatch, layout: Layout) -> Tensor:
        """Embedding and blocks: [T, D]; with the last norm if it is of tokens."""
        places = self._places(batch, layout)
        x = self._embed(batch, layout, places)
        context = self._context(x, layout, places)
        every = self.config.checkpoint_every
        for i, block in enumerate(self.blocks):
            if every and i % every == 0 and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context)
        return self.norm(x) if self.config.last_norm == "tokens" else x

    def _places(self, batch: PackedBatch, layout: Layout) -> Places:
        """Where every token of the model is in its image; padding and prefix tokens are alone in theirs."""
        sizes = batch.grids.new_ones(layout.num_owners + 1, batch.grids.shape[1])
        sizes[:-1] = batch.grids
        return Places(layout.place(batch.coords), layout.place(batch.extents, 1), sizes[layout.owner])

    def _embed(self, batch: PackedBatch, layout: Layout, places: Places) -> Tensor:
        slots = batch.slots
        if layout.slot_of is not None:
            slots = {shape: layout.slot_of[s] for shape, s in slots.items()}
        x = self.patch_embed(batch.patches, slots, layout.is_own)  # [T, D]
        if self.pos_embed is not None:
            x = x + self.pos_embed(places).to(x.dtype)
        # Nothing that stands in padding, NaN too, goes further than here, nor does its gradient.
        x = x.where(layout.is_own[:, None], 0)
        if self.prefix is not None:
            tokens = self.prefix.expand(layout.num_owners, -1, -1).flatten(0, 1)  # [N * prefix, D]
            x = x.index_copy(0, layout.prefix_slots.flatten(), tokens)
        return x if self.pre_norm is None else self.pre_norm(x)

    def _context(self, x: Tensor, layout: Layout, places: Places) -> Context:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        backend = choose_backend(self.backend, x.device, dtype)
        segments = Segments.build(layout.cu_seqlens, layout.max_len, backend, total=layout.num_slots)
        c = self.config
        if c.pos_embed != "rope_2d":
            return Context(layout, segments)
        position = centres(places, c.pos_coords, c.pos_grid, torch.promote_types(x.dtype, torch.float32))
        position = position.where(layout.is_own[:, None], 0)  # cls and registers do not turn
        return Context(layout, segments, rope_tables(position, c.head_dim, c.rope_theta))
