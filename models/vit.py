"""PackedViT: one Vision Transformer for every patch size and resolution, over packed sequences.

The tokens of a batch stay one flat tensor [T, D] from the patch embedding to the pooling; nothing in
between loops over images. With cls or register tokens T grows by N * prefix (see Layout).
"""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from packvit.models.attention.backends import choose_backend
from packvit.models.attention.segments import Layout, Segments
from packvit.models.config import ViTConfig
from packvit.models.encoder.block import Block, Context, make_norm
from packvit.models.encoder.pool import Pool
from packvit.models.files.hub import HubModel
from packvit.models.files.weights import build_model, read_weights, write_weights
from packvit.models.inputs import Input, PatchSizes, Sides, as_batch
from packvit.models.position.embedding import Places, PosEmbed, centres, rope_tables
from packvit.models.resample import PatchEmbed
from packvit.packing import PackedBatch


class Outputs(NamedTuple):
    """All results of one forward pass.

    logits: [N, num_classes]; the features if there is no head.
    features: [N, config.feature_dim], the input of the head.
    tokens: [T, D], the last layer at the batch's slots, normalised if last_norm is tokens; values in padding
        are meaningless.
    """

    logits: Tensor
    features: Tensor
    tokens: Tensor


def place_tokens(
    model: "PackedViT", x: Tensor, layout: Layout, coords: Tensor, extents: Tensor, grids: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Add positions and prefix tokens. It must be called without autocast, so that sums are in float32.

    Args:
        x: [T, D], embedded patches, zeros in slots without a patch.
        coords, extents, grids: fields of the batch.

    Returns:
        Tokens [T, D] in the dtype of the residual stream; and the tables of rotary positions, or None.
    """
    sizes = torch.cat([grids, grids.new_ones(1, grids.shape[1])])  # padding's own at the end
    places = Places(layout.place(coords), layout.place(extents, 1), sizes[layout.owner])
    dtype = model.stream_dtype
    if model.pos_embed is not None:
        x = x + model.pos_embed(places).to(x.dtype)
    # Nothing that stands in padding, NaN too, goes further than here, nor does its gradient.
    x = x.where(layout.is_own[:, None], 0).to(dtype)
    if model.prefix is not None:
        tokens = model.prefix.to(dtype).expand(layout.num_owners, -1, -1).flatten(0, 1)  # [N * prefix, D]
        x = x.index_copy(0, layout.prefix_slots.flatten(), tokens)
    c = model.config
    if c.rotary_coords is None:
        return x, None
    position = centres(places, c.rotary_coords, c.pos_grid, torch.promote_types(dtype, torch.float32))
    position = position.where(layout.is_own[:, None], 0)  # cls and registers do not turn
    return x, rope_tables(position, c.head_dim, c.rope_theta)


def pool_tokens(model: "PackedViT", x: Tensor, layout: Layout) -> Tensor:
    """Tokens [T, D] to the input of the last norm or the head, [N, config.pooled_width]."""
    return model.pool(x, layout)


class PackedViT(
    nn.Module, HubModel, library_name="packvit", pipeline_tag="image-classification", tags=["packvit"]
):
    """The model; if huggingface_hub is installed, also a PyTorchModelHubMixin.

    Args:
        config: the model's configuration.
        backend: attention backend, `auto` or a key of BACKENDS; may be set later as `model.backend`.

    Attributes:
        depth: number of blocks that run: `config.depth` or fewer; the layers after the blocks read the output
            of the last one that runs.
        residual_dtype: dtype of the stream that blocks read and add to; None: that of the weights. Under
            autocast, bfloat16 halves the memory traffic of blocks, and costs digits.
    """

    lay_out: Callable[..., Layout] = staticmethod(Layout.build)
    place: Callable[..., tuple[Tensor, tuple[Tensor, Tensor] | None]] = staticmethod(place_tokens)
    reduce: Callable[..., Tensor] = staticmethod(pool_tokens)

    def __init__(self, config: ViTConfig, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.depth = config.depth
        self.residual_dtype: torch.dtype | None = None
        width = config.width
        buffer = (config.patch_buffer, config.patch_buffer)
        self.patch_embed = PatchEmbed(
            width, buffer, config.patch_operator, config.image_mean, config.image_std
        )
        self.pos_embed = PosEmbed(config, width) if config.adds_positions else None
        self.prefix = None
        if config.prefix:
            # A cls token starts at zero, as big_vision's; registers need to differ from each other.
            self.prefix = nn.Parameter(torch.randn(config.prefix, width) * 0.02)
            self.prefix.data[: int(config.cls)] = 0
        self.pre_norm = make_norm(config, width) if config.pre_norm else None
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(
            Block(config, drop_path=config.drop_path * i / last) for i in range(config.depth)
        )
        match config.last_norm:
            case "tokens":
                self.norm = make_norm(config, width)
            case "pooled":
                self.norm = make_norm(config, config.pooled_width)
            case "none":
                self.norm = nn.Identity()
            case _ as unknown:
                assert_never(unknown)
        self.pool = Pool(config, config.pool)
        self.rep = nn.Linear(config.pooled_width, config.rep_size) if config.rep_size else None
        self.head = nn.Linear(config.feature_dim, config.num_classes) if config.num_classes else None
        if self.head is not None:
            # Zeros, as big_vision: the first loss is exactly that of knowing nothing.
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    @property
    def stream_dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.residual_dtype or self.patch_embed.weight.dtype

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> "PackedViT":
        """`load_model` with options for a download from the hub; `save_pretrained` and `push_to_hub` are
        those of PyTorchModelHubMixin.

        Args:
            pretrained_model_name_or_path: a path or name that `load_model` takes.
            force_download, token, cache_dir, local_files_only, revision: see huggingface_hub.
            model_kwargs: ViTConfig fields, as for `load_model`.
        """
        options = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        given = {name: value for name, value in options.items() if value}
        return build_model(cls, read_weights(Path(pretrained_model_name_or_path), model_kwargs, **given))

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained` of PyTorchModelHubMixin asks for."""
        write_weights(self, self.config, save_directory)

    def forward(self, batch: Input, patch_size: PatchSizes = None, resolution: Sides = None) -> Tensor:
        """Logits [N, num_classes], in the order of the batch's images; features if there is no head.

        Args:
            batch: a packed batch, or a list of images, which are packed into one sequence; see `pack_images`.
            patch_size, resolution: for a list of images, one value for all or one for each; None: the patch
                size of the stored patch embedding, and each image's native size.

        Raises:
            ValueError: an image cannot be used; names its place in the list.
        """
        x = self.features(batch, patch_size, resolution)
        return x if self.head is None else self.head(x)

    def features(self, batch: Input, patch_size: PatchSizes = None, resolution: Sides = None) -> Tensor:
        """The inputs of the head: [N, config.feature_dim], pooled and normalised; arguments as for
        `forward`."""
        batch = self._packed(batch, patch_size, resolution)
        layout = self._layout(batch)
        return self._pool(self._encode(batch, layout), layout)

    def outputs(self, batch: Input, patch_size: PatchSizes = None, resolution: Sides = None) -> Outputs:
        """Logits, features and tokens of one forward pass; arguments as for `forward`."""
        batch = self._packed(batch, patch_size, resolution)
        layout = self._layout(batch)
        x = self._encode(batch, layout)  # [T, D]
        features = self._pool(x, layout)
        logits = features if self.head is None else self.head(features)
        return Outputs(logits, features, x if layout.slot_of is None else x[layout.slot_of])

    def tokens(self, batch: Input, patch_size: PatchSizes = None, resolution: Sides = None) -> list[Tensor]:
        """The last layer's patch tokens as N dense maps [rows, cols, D], normalised if last_norm is tokens;
        arguments as for `forward`. Overlapping patches are rows and columns like others.

        Raises:
            ValueError: tokens of an image were dropped, or cover several cells, so that its map would have
                holes.
        """
        batch = self._packed(batch, patch_size, resolution)
        layout = self._layout(batch)
        grids = batch.grids.tolist()
        for i, grid in batch.token_grids.items():
            grids[i] = grid
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
        """Compile everything except attention and head: the layout of a batch, the embedding of each patch
        size, positions, the per-token parts of blocks, and pooling.

        One compilation serves all blocks and all models of one configuration, for any images and number of
        tokens; training, evaluation and autocast are compiled separately, and so is each patch size.
        Attention is not compiled because its kernels have plans of their own.

        Args:
            backend: backend of torch.compile.
        """
        from packvit.models.compiled import compile_copy, compile_patches, compile_tokens

        self.lay_out = compile_copy(Layout.build, self.config, backend)
        self.place = compile_copy(place_tokens, self.config, backend)
        self.reduce = compile_copy(pool_tokens, self.config, backend)
        self.patch_embed.find = partial(compile_patches, self.config, backend)
        compile_tokens(self.blocks, self.config, backend)

    def _packed(self, batch: Input, patch_size: PatchSizes, resolution: Sides) -> PackedBatch:
        """What `forward` is called with, as a batch."""
        device = self.patch_embed.weight.device
        return as_batch(batch, patch_size, resolution, self.config.patch_buffer, device)

    def _layout(self, batch: PackedBatch) -> Layout:
        """Where the tokens of a batch stand in the model."""
        prefix = 0 if self.prefix is None else len(self.prefix)
        # A compiler makes one image a case of its own.
        lay_out = self.lay_out if batch.num_images > 1 else Layout.build
        return lay_out(batch.cu_seqlens, batch.image_index, batch.num_images, batch.max_len, prefix)

    def _pool(self, x: Tensor, layout: Layout) -> Tensor:
        """Tokens [T, D] to features [N, config.feature_dim]."""
        # A compiler makes one image a case of its own.
        reduce = self.reduce if layout.num_owners > 1 else pool_tokens
        x = reduce(self, x, layout)  # [N, D]
        if self.config.last_norm == "pooled":
            x = self.norm(x)
        return x if self.rep is None else self.rep(x).tanh()

    def _encode(self, batch: PackedBatch, layout: Layout) -> Tensor:
        """Embedding and blocks: [T, D]; with the last norm if it is of tokens."""
        x, context = self._embed(batch, layout)
        every = self.config.checkpoint_every
        for i, block in enumerate(islice(self.blocks, self.depth)):
            if every and i % every == 0 and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context)
        return self.norm(x) if self.config.last_norm == "tokens" else x

    def _embed(self, batch: PackedBatch, layout: Layout) -> tuple[Tensor, Context]:
        """What enters the blocks: [T, D], and what blocks know of it."""
        if batch.token_grids:
            self.config.check_overlap("a batch of such patches")
        slots = batch.slots
        if layout.slot_of is not None:
            slots = {shape: layout.slot_of[s] for shape, s in slots.items()}
        x = self.patch_embed(batch.patches, slots, layout.is_own)  # [T, D]
        device = x.device.type
        place = self.place if batch.num_images > 1 else place_tokens
        with torch.autocast(device, enabled=False):
            x, rope = place(self, x, layout, batch.coords, batch.extents, batch.grids)
        if self.pre_norm is not None:
            x = self.pre_norm(x).to(self.stream_dtype)
        # Queries and keys are what linear layers give.
        dtype = self.patch_embed.weight.dtype
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        backend = choose_backend(self.backend, x.device, dtype, self.config.head_dim)
        segments = Segments.build(layout.cu_seqlens, layout.max_len, backend, total=layout.num_slots)
        return x, Context(layout, segments, rope)
