"""The text tower: our blocks over the flat tokens of packed texts."""

import torch
from torch import Tensor, nn

from packvit.models.attention.backends import choose_backend
from packvit.models.attention.segments import Layout, Segments
from packvit.models.encoder.block import Block, Context, linear, make_norm
from packvit.models.encoder.pool import Pool
from packvit.models.text.config import TextConfig
from packvit.models.text.packed import PackedText


class TextTower(nn.Module):
    """A Transformer over texts, each of which sees itself alone, in both directions.

    Args:
        config: what it is.
        backend: attention backend, `auto` or a key of BACKENDS; may be set later as `tower.backend`.
    """

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
        self.pool = Pool(config, "map") if config.pool == "map" else None
        self.head = linear(width, config.embed_dim, bias=True) if config.embed_dim else None

    def forward(self, text: PackedText) -> Tensor:
        """What texts are embedded as, not normalised: [N, config.feature_dim]."""
        layout = Layout.build(text.cu_seqlens, text.owner, text.num_texts, text.max_len)
        x = self.embed(text.ids) + self.positions[text.place]  # [T, D]
        device, dtype = x.device.type, x.dtype
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        backend = choose_backend(self.backend, x.device, dtype, self.config.head_dim)
        segments = Segments.build(layout.cu_seqlens, layout.max_len, backend, total=layout.num_slots)
        context = Context(layout, segments)
        for block in self.blocks:
            x = block(x, context)
        x = self.norm(x)
        if self.pool is not None:
            x = self.pool(x, layout)  # [N, D]
        else:
            ends = layout.cu_seqlens[1:].long()[layout.owner_segment]
            x = x[ends - 1]  # [N, D]
        return x if self.head is None else self.head(x)
