"""Compiled copies of a model's functions, one set for each configuration.

PyTorch stores compilations with a function's code object and allows each object a few; beyond that, it
silently runs the function uncompiled. Every configuration therefore compiles its own copies, so that it does
not use up another's limit. They are compiled as a whole: beyond the limit, or if a graph would break, they
raise an error.

Compilers treat sizes of 0 and 1 as special cases. Batches with such sizes are run by the uncompiled functions
rather than compiled once more.
"""

import types
from collections.abc import Callable, Iterable
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from packvit.models.encoder.block import Block, BlockConfig, after, before
from packvit.models.resample import embed_patches
from packvit.packing import Shape

_copies = count()


# Of one copy: dtypes, autocast, what is frozen or dropped, training and evaluation. torch allows eight.
VARIANTS = 64
torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)


@cache
def compile_copy(function: Callable, config: BlockConfig, backend: str | Callable[..., Any]) -> Callable:
    """A compiled copy of `function` for all models of `config`, with symbolic batch sizes."""
    return torch.compile(_copy(function), backend=backend, dynamic=True, fullgraph=True)


def compile_tokens(
    blocks: Iterable[nn.Module], config: BlockConfig, backend: str | Callable[..., Any]
) -> None:
    """Compile the per-token parts of blocks, in place; one compilation serves all blocks."""
    for block in blocks:
        assert isinstance(block, Block)
        block.before = compile_copy(before, config, backend)
        block.after = compile_copy(after, config, backend)


@cache
def compile_patches(
    config: BlockConfig, backend: str | Callable[..., Any], shape: Shape
) -> Callable[..., Tensor]:
    """`embed_patches`, compiled for patches of `shape`; only their number is symbolic.

    Each shape has its own function, because a common one would be compiled for each shape, up to its limit.
    """
    compiled = torch.compile(_copy(embed_patches), backend=backend, dynamic=False, fullgraph=True)

    def embed(module: Any, patches: Tensor, is_real: Tensor | None, *rest: Any) -> Tensor:
        for tensor in (patches, is_real):
            if tensor is not None:
                torch._dynamo.mark_dynamic(tensor, 0)
        return compiled(module, patches, is_real, *rest)

    return embed


def _copy(function: Callable) -> Callable:
    """The same function with a code object of its own."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_copies)}")
    return types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__)
