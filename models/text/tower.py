"""The text tower: our blocks over the flat tokens of packed texts."""

from collections.abc import Callable
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from packvit.models.attention.backends import choose_backend
from packvit.models.attention.segments import Layout, Segments
from packvit.models.encoder.block import Block, Context, linear, make_norm
from packvit.models.encoder.pool import Pool
from packvit.models.text.config import TextConfig
from packvit.models.text.packed import PackedText


def pool_texts(tower: "TextTower", x: Tensor, layout: Layout) -> Tensor:
    """The blocks' output, [T, D], normalised and pooled to one vector for each text, [N, D]."""
    x = tower.norm(x)
    if tower.pool is not None:
        return tower.pool(x, layout)
    ends = layout.cu_seqlens[1:].long()[layout.owner_segment]
    return x[ends - 1]


class TextTower(nn.Module):
    """A Transformer over texts, each of which attends only to itself, in both directions.

    Args:
        config: the tower's configuration.
        backend: attention backend, `auto` or a key of BACKENDS; may be set later as `tower.backend`.
    """

    lay_out: Callable[..., Layout] = staticmethod(Layout.build)
    reduce: Callable[..., Tensor] = staticmethod(pool_texts)

    def __init__(self, config: TextConfig, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        width = config.width
        self.embed = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.positions = nn.Parameter(torch.randn(config.max_tokens, width) * width**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = make_norm(config, width)
        match config.pool:
            case "map":
                self.pool = Pool(config, "map")
            case "last":
                self.pool = None
            case _ as unknown:
                assert_never(unknown)
        self.head = linear(width, config.embed_dim, bias=True) if config.embed_dim else None

    def forward(self, text: PackedText) -> Tensor:
        """The embeddings of texts, not normalised: [N, config.feature_dim]."""
        # A compiler makes one text a case of its own.
        several = text.num_texts > 1
        lay_out, reduce = (self.lay_out, self.reduce) if several else (Layout.build, pool_texts)
        layout = lay_out(text.cu_seqlens, text.owner, text.num_texts, text.max_len)
        x = self.embed(text.ids) + self.positions[text.place]  # [T, D]
        device, dtype = x.device.type, x.dtype
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        backend = choose_backend(self.backend, x.device, dtype, self.config.head_dim)
        segments = Segments.build(layout.cu_seqlens, layout.max_len, backend, total=layout.num_slots)
        context = Context(layout, segments)
        for block in self.blocks:
            x = block(x, context)
        x = reduce(self, x, layout)  # [N, D]
        return x if self.head is None else self.head(x)

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the layout of a batch, the per-token parts of blocks, and pooling, as PackedViT does.

        Args:
            backend: backend of torch.compile.
        """
        from packvit.models.compiled import compile_copy, compile_tokens

        self.lay_out = compile_copy(Layout.build, self.config, backend)
        self.reduce = compile_copy(pool_texts, self.config, backend)
        compile_tokens(self.blocks, self.config, backend)
